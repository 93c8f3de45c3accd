{{/* What selects the pods of this release. */}}
{{- define "thoughtbubbles.selector" -}}
app.kubernetes.io/name: thoughtbubbles
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels of every object. */}}
{{- define "thoughtbubbles.labels" -}}
{{ include "thoughtbubbles.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* A setting as an environment variable has it. Numbers as JSON: Helm's own text of 1073741824 is 1.073741824e+09. */}}
{{- define "thoughtbubbles.variable" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if kindIs "slice" . }}{{ join "," . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
