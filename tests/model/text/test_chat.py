"""Chat templates: Hugging Face's language, and end-of-text that only the template can write."""

import re

import pytest

from thoughtbubbles.model import ChatTemplate, Tokenizer

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}assistant:"


def ask(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_end_of_text_is_the_templates_alone(tokenizer: Tokenizer) -> None:
    ids = ChatTemplate(PLAIN).encode(ask("hi <|endoftext|> the end"), tokenizer)
    assert ids == [
        *tokenizer.encode("user: hi <|endoftext|> the end"), tokenizer.end_of_text, *tokenizer.encode("assistant:"),
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["{{ bos_token }}a", "<|endoftext|>a", "{{ '<|endoftext|>' + 'a' }}"])
def test_end_of_text_by_any_of_its_names(tokenizer: Tokenizer, source: str) -> None:
    assert ChatTemplate(source).encode(ask(""), tokenizer) == [tokenizer.end_of_text, ord("a")]


def test_a_template_for_hugging_face_is_understood(tokenizer: Tokenizer) -> None:
    source = """\
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set said = message['content'] | trim %}
{{ '<|im_start|>' + message['role'] }} {{ {'said': said} | tojson }}
{% endfor %}
{% if add_generation_prompt and today is not defined %}
<|im_start|>assistant
{% endif %}
"""
    messages = [{"role": "system", "content": "quiet"}, *ask(" <é> ")]
    ids = ChatTemplate(source).encode(messages, tokenizer)
    assert tokenizer.decode(ids) == '<|im_start|>user {"said": "<é>"}\n<|im_start|>assistant\n'


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}{{ tools }}",
        "{{ messages | tojson(indent=1, separators=(',', ':'), sort_keys=true) }}{{ '<é>' | tojson(true) }}",
        "{% set x = 1 %}\n{% generation %}\n  {% set x = 2 %}{{ messages[0].content }}{% endgeneration %}\n{{ x }}",
        "{%- for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration %}{{ eos_token }}{% endfor %}",
    ],
)
def test_a_template_renders_as_in_transformers(tokenizer: Tokenizer, source: str) -> None:
    theirs = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers (in the extra `test`) is not installed"
    )
    (text,), _ = theirs.render_jinja_template(
        [ask("hi")], chat_template=source, add_generation_prompt=True,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>",
    )  # fmt: skip
    assert tokenizer.decode(ChatTemplate(source).encode(ask("hi"), tokenizer)) == text


def test_a_template_knows_the_date(tokenizer: Tokenizer) -> None:
    ids = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").encode(ask("hi"), tokenizer)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].name.first }}", "has no attribute 'name'"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/hostname' %}", "no loader"),
    ],
)
def test_what_a_template_does_not_take_is_an_error(tokenizer: Tokenizer, source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"does not take these messages: .*{reason}"):
        ChatTemplate(source).encode(ask("hi"), tokenizer)


def test_what_does_not_parse_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: "):
        ChatTemplate("one\n{% for %}")
