"""Chat templates render as in transformers; what none of them reads is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest
import tokenizers
from tokenizers import models

from pilotfish.errors import CheckpointError, RequestError
from pilotfish.tokenization.chat_template import ChatTemplate
from pilotfish.tokenization.files import templates_in
from pilotfish.tokenization.tokenizer import Tokenizer

USER = {"role": "user", "content": "Hi <b>"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer", "description": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
CALL = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]

# A template with what published ones have: tools, documents, thinking, calls, answers of tools.
FULL = """\
{{- bos_token }}
{%- if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}
{%- if documents %}{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}{% endif %}
{%- for m in messages %}
<{{ m.role }}>
{%- if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}
{%- if m.content is defined %}{{ m.content | trim }}{% endif %}
{%- if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson(indent=1) }}{% endfor %}
{%- endif %}</{{ m.role }}>
{%- endfor %}
{%- if add_generation_prompt %}<assistant>
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{%- endif %}"""
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "null content": [USER, {"role": "assistant", "content": None, "tool_calls": CALL}],
    "no content": [
        USER,
        {"role": "assistant", "tool_calls": CALL},
        {"role": "tool", "content": "3"},
    ],
    "null calls": [
        {**USER, "tool_calls": None, "name": None},
        {"role": "assistant", "content": "A"},
    ],
    "reasoning": [USER, {"role": "assistant", "content": "A", "reasoning": "R"}],
    "thinking": [USER, {"role": "assistant", "content": "A", "thinking": "R"}],
    "reasoning_content": [USER, {"role": "assistant", "content": "A ", "reasoning_content": "R"}],
}


def add(a: int, b: str = "x") -> str:
    """Adds.

    Args:
        a: the first
        b: the second
    """
    return f"{a}{b}"


VARIABLES: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"tools": []},
    {"tools": [add]},
    {"tools": [TOOLS[0], add], "enable_thinking": False},
    {"documents": [{"title": "t", "text": "x"}]},
    {"enable_thinking": True},
    {"continue_final_message": True},
    {"continue_final_message": "reasoning_content"},
]


def theirs(templates: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    made.chat_template = templates
    return made


@pytest.mark.filterwarnings("ignore:the chat template does not read")
@pytest.mark.parametrize("templates", [{"default": FULL}, {"default": PLAIN, "tool_use": FULL}])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("variables", VARIABLES, ids=range(len(VARIABLES)))
def test_renders_as_transformers_does(
    templates: dict[str, str], messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    ends = {} if "continue_final_message" in variables else {"add_generation_prompt": True}
    try:
        want = theirs(templates).apply_chat_template(
            messages, tokenize=False, **{**ends, **variables}
        )
    except ValueError:
        want = None  # e.g. no such field to continue
    template = ChatTemplate(templates, {"bos_token": "<s>"})
    if want is None:
        with pytest.raises(RequestError, match="continue_final_message is set"):
            template.render(messages, **variables)
    else:
        assert template.render(messages, **variables) == want


TEXTS = [{"type": "text", "text": "Hi <b> "}, {"text": "there"}]
PARTS = [{"role": "system", "content": "S"}, {"role": "user", "content": TEXTS}]
LISTS = """\
{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}
{%- else %}{% for p in m.content %}({{ p.text | trim }}){% endfor %}{% endif %}{{ '\\n' }}
{%- endfor %}"""
ONLY_LISTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def test_lists_of_texts_are_rendered_as_transformers_does_where_a_template_takes_them() -> None:
    want = theirs({"default": LISTS}).apply_chat_template(PARTS, tokenize=False)
    assert want == "system: S\nuser: (Hi <b>)(there)\n"
    assert ChatTemplate(LISTS).render(PARTS, add_generation_prompt=False) == want
    shouted = ONLY_LISTS.replace("p.text", "p.text | upper")
    assert ChatTemplate(shouted).render(PARTS[1:]) == "HI <B> THERE"


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}"
        "{% endif %}{{ '\\n' }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('|')[0] }}\n{% endfor %}",
    ],
)
def test_lists_of_texts_are_one_text_where_a_template_takes_none(template: str) -> None:
    assert ChatTemplate(template).render(PARTS) == "system: S\nuser: Hi <b> \nthere\n"
    assert PARTS[1]["content"] == TEXTS, "the caller's messages stay as they are"


def test_a_list_that_is_not_of_texts_is_said_to_be_one() -> None:
    template = ChatTemplate("{% for m in messages %}{{ 'a' + m.content }}{% endfor %}")
    with pytest.raises(RequestError, match="wanted text as content, where the template takes no l"):
        template.render([{"role": "user", "content": [{"type": "image"}, *TEXTS]}])
    with pytest.raises(RequestError, match=r"wanted dicts with 'role'"):
        template.render([{"role": "user", "content": 7}])


def test_null_fields_are_not_written() -> None:
    rendered = ChatTemplate(FULL, {"bos_token": "<s>"}).render(CONVERSATIONS["null content"])
    assert "None" not in rendered
    assert '"name": "f"' in rendered


def test_an_answer_is_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is"}]
    template = ChatTemplate(FULL, {"bos_token": "<s>"})
    assert template.render(messages, continue_final_message=True).endswith(
        "<assistant>The answer is"
    )
    with pytest.raises(RequestError, match="were both given; wanted one"):
        template.render(messages, continue_final_message=True, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("add_generation_promt", r"\(did you mean add_generation_prompt\?\)"),
        ("enable_thinkin", r"\(did you mean enable_thinking\?\)"),
        ("enable_thinking_", r"\(did you mean enable_thinking\?\)"),
        ("xyzzy", "wanted a variable that it reads, or one of tools, documents"),
    ],
)
def test_an_unknown_keyword_is_refused(name: str, said: str) -> None:
    with pytest.raises(RequestError, match=rf"does not read '{name}'.*{said}"):
        ChatTemplate(FULL).render([USER], **{name: False})


def test_a_variable_of_the_templates_own_is_given() -> None:
    assert (
        ChatTemplate("{{ my_name }}{{ messages[0].content }}").render([USER], my_name="x")
        == "xHi <b>"
    )


@pytest.mark.parametrize("given", [{"enable_thinking": False}, {"tools": TOOLS}])
def test_what_other_templates_read_changes_nothing_and_is_said(given: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"does not read {next(iter(given))}"):
        got = ChatTemplate(PLAIN).render([USER], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ChatTemplate(PLAIN).render([USER], tools=[]) == got == "user: Hi <b>\n"


def test_one_of_several_templates() -> None:
    template = ChatTemplate({"rag": "R", "tool_use": "T"})
    assert template.render([USER], tools=[]) == "T"
    assert template.render([USER], chat_template="rag") == "R"
    assert template.render([USER], chat_template="own {{ messages[0].role }}") == "own user"
    with pytest.raises(
        RequestError, match=r"chat_template is 'rga'; wanted jinja.*: rag, tool_use"
    ):
        template.render([USER], chat_template="rga")
    with pytest.raises(RequestError, match="named rag, tool_use and none is the default; pass one"):
        template.render([USER])
    assert ChatTemplate({"default": "D", "tool_use": "T"}).render([USER]) == "D"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion"),
        ("{{ raise_exception('no system message') }}", "messages: no system message; wanted dicts"),
        ("{{ tools[0].f() }}", "UndefinedError|has no element 0|is undefined"),
    ],
)
def test_whatever_a_template_raises_is_a_line(template: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ChatTemplate(template).render([USER], tools=[])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the conversation is empty; wanted one message at least"),
        (["hi"], "a message is str; wanted a dict"),
        ("hi", "messages is str; wanted"),
        (7, "messages is int; wanted"),
    ],
)
def test_what_is_no_conversation(messages: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ChatTemplate(PLAIN).render(messages)


def test_tools_and_documents_that_cannot_be_told() -> None:
    for given in ({"tools": [3]}, {"tools": [lambda: 1]}, {"documents": ["text"]}):
        with pytest.raises(RequestError, match="cannot render these messages"):
            ChatTemplate(FULL).render([USER], **given)


# Where templates lie


def test_templates_of_a_directory(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}, "odd", {}]
    assert templates_in(tmp_path, {}) == {}
    assert templates_in(tmp_path, {"chat_template": "D"}) == {"default": "D"}
    assert templates_in(tmp_path, {"chat_template": listed}) == {"default": "D", "rag": "R"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    (tmp_path / "chat_template.jinja").write_text("F")
    want = {"default": "F", "tool_use": "T"}
    assert templates_in(tmp_path, {"chat_template": listed}) == want
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="the template cannot be read"):
        templates_in(tmp_path, {})


@attrs.frozen
class FakeGGUF:
    """Metadata without a file."""

    metadata: dict[str, Any]


def gguf(**more: Any) -> Tokenizer:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": letters}
    metadata = {**metadata, "tokenizer.ggml.merges": [], **more}
    from pilotfish.weights.pretokenizer import PRE_TOKENIZERS

    made = Tokenizer.from_gguf(FakeGGUF(metadata), PRE_TOKENIZERS)  # type: ignore[arg-type]
    assert made is not None
    return made


def test_templates_of_a_gguf_file() -> None:
    key = "tokenizer.chat_template"
    ours = gguf(**{key: "D", f"{key}.tool_use": "T", f"{key}s": ["tool_use"]})
    assert ours.render_chat("Hi") == "D"
    assert ours.render_chat("Hi", tools=[]) == "T"
    assert gguf().chat_template is None
    assert gguf(**{key: ""}).chat_template is None


def test_a_template_for_a_checkpoint_without_one() -> None:
    bare = gguf()
    with pytest.raises(RequestError, match="no chat template; pass a plain prompt, or a template"):
        bare.render_chat("Hi")
    assert bare.render_chat("Hi", chat_template="<{{ messages[0].content }}>") == "<Hi>"
