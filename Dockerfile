# The server with the checkpoint in checkpoints/ inside. docs/OPERATION.md ("In a container") tells how to run it.
#
#   docker build --tag thoughtbubbles:cpu .
#   docker build --tag thoughtbubbles:cuda --build-arg TORCH=cu130 --build-arg DEVICE=cuda .

# With a digest (…-slim-bookworm@sha256:…) two builds begin from the same bytes.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
# Of what builds the wheel, too.
ENV PIP_CONSTRAINT=/build/constraints.txt PIP_BUILD_CONSTRAINT=/build/constraints.txt
WORKDIR /build
COPY constraints.txt ./
# torch first and alone: a change of our code leaves its layer, the largest by far, as it is. The build for one device
# is the newer version (2.13.0+cpu follows 2.13.0). Versions are pinned by PIP_CONSTRAINT, which hadolint does not know.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --extra-index-url "${TORCH_INDEX}" torch
# torch's own tests, and headers that only C++ extensions need: a quarter of its build for a CPU.
RUN torch=$(echo /opt/venv/lib/python3.*/site-packages/torch) \
    && rm -rf "$torch/test" "$torch/include" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY LICENSE README.md pyproject.toml setup.py ./
COPY thoughtbubbles thoughtbubbles/
COPY model model/
COPY engine engine/
COPY server server/
COPY terminal terminal/
COPY training training/
# The wheel that is released for this platform: it has the native step for all instruction levels, for the image has no
# compiler.
RUN TB_NATIVE_WHEEL=1 pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
    && pip --python /opt/venv/bin/python install --no-cache-dir /dist/*.whl

# hadolint ignore=DL3006
FROM ${BASE}
ARG DEVICE=cpu
# Triton, which comes with torch for a GPU, needs a C compiler to start its kernels. Debian keeps no older version of one.
# hadolint ignore=DL3008
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin thoughtbubbles \
    && if [ "${DEVICE}" != cpu ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/venv /opt/venv
COPY checkpoints /checkpoints/
ENV PATH=/opt/venv/bin:$PATH \
    TRITON_CACHE_DIR=/tmp/triton \
    THOUGHTBUBBLES_HOST=0.0.0.0 \
    THOUGHTBUBBLES_PORT=8000 \
    THOUGHTBUBBLES_DEVICE=${DEVICE} \
    THOUGHTBUBBLES_CHECKPOINT=/checkpoints/thoughtbubbles-11m
# By number, so that an orchestrator can see that it is not root.
USER 10001
EXPOSE 8000
# http.client, because urllib would go through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['THOUGHTBUBBLES_PORT']), timeout=4); \
server.request('GET', '/ready'); \
sys.exit(server.getresponse().status != 200)"]
# In exec form: the server is process 1 and gets SIGTERM itself, on which it drains.
ENTRYPOINT ["thoughtbubbles"]
CMD ["serve"]
