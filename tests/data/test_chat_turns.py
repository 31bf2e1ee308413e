"""Which tokens of a chat count, by hand, for templates as published models have them.

The templates are written anew, in the manner of the families that they are named after;
their tokenizers have a token a letter, so that a mask can be read beside the text.
"""

import string
from functools import partial
from itertools import groupby

import pytest
from row_cases import validate

from dpo_jax.data import bounds
from dpo_jax.data.encode import Encoded, encode, encode_all
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.tokenize import _cut, tokenize, truncate
from dpo_jax.errors import DataError, ModelError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}"
)
TOOLS = "{% if tools %}<s>tools {{ tools[0].function.name }}<e>\n{% endif %}"
CHATML = (
    f"{TOOLS}{{% for m in messages %}}<s>{{{{ m.role }}}}\n{{{{ m.content }}}}{CALLS}"
    "<e>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<b>{% for m in messages %}<h>{{ m.role }}</h>\n\n{{ m.content | trim }}<t>"
    "{% endfor %}{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}"
)
MISTRAL = (
    "<b>{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }}[/I]"
    "{% else %} {{ m.content }}<e>{% endif %}{% endfor %}"
)
LAST_SYSTEM = (  # puts the system's words beside the last turn of the user
    "<b>{% set told = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}[I]"
    "{% if told and not messages[loop.index0 + 2:] %} {{ told }}{% endif %}"
    " {{ m.content }}[/I]{% elif m.role == 'assistant' %} {{ m.content }}<e>{% endif %}"
    "{% endfor %}"
)
THINKING = (  # an answer thinks aloud while it is the last
    "{% for m in messages %}<s>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
MARKED = (  # as templates are published for training
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<e>{% endgeneration %}{% else %}{{ m.content }}<e>"
    "{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
LIMITS = {"max_prompt_tokens": 1, "side": "keep_end"}
SPECIAL = ("<pad>", "<b>", "<s>", "<e>", "<h>", "</h>", "<t>", "[I]", "[/I]")


def build(template, merges=(), eos="<e>"):
    """A token a letter, and of what is merged."""
    letters = [*string.ascii_letters, *" .!?\n<>/", *("".join(m) for m in merges)]
    ids = {token: i for i, token in enumerate((*SPECIAL, *letters))}
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(ids, list(merges)))
    bare.decoder = tokenizers.decoders.Fuse()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        eos_token=eos,
        additional_special_tokens=[t for t in SPECIAL if t not in ("<pad>", eos)],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def say(role, content, **more):
    return {"role": role, "content": content, **more}


TWO = [
    say("system", "Be brief."),
    say("user", "Hi"),
    say("assistant", "Ho."),
    say("user", "Sky?"),
    say("assistant", "Blue."),
]


def rows(fields, kind="completions", **options):
    located = [("f:1", fields)]
    return validate(located, kind=kind, format="", on_bad_row="error", **options)[0]


def encoded(fields, tokenizer, **options):
    (row,) = rows(fields, **options)
    return encode(row, tokenizer, join="separate", chat_template=None)


def runs(found, tokenizer, which=0):
    """Lists the text before what counts, and each run of tokens that does."""
    ids = found.responses[which]
    scored = found.scored[which] if found.scored else [True] * len(ids)
    pieces = groupby(zip(ids, scored, strict=True), key=lambda both: both[1])
    texts = [tokenizer.decode([i for i, _ in of]) for counts, of in pieces if counts]
    return [tokenizer.decode(found.prompt), *texts]


@pytest.mark.parametrize(
    "template, eos, start, first, second",
    [
        (
            CHATML,
            "<e>",
            "<s>system\nBe brief.<e>\n<s>user\nHi<e>\n<s>assistant\n",
            "Ho.<e>",
            "Blue.<e>",
        ),
        (
            LLAMA_3,
            "<t>",
            "<b><h>system</h>\n\nBe brief.<t><h>user</h>\n\nHi<t><h>assistant</h>\n\n",
            "Ho.<t>",
            "Blue.<t>",
        ),
        (MISTRAL, "<e>", "<b>[I] Hi[/I]", " Ho.<e>", " Blue.<e>"),
        (MARKED, "<e>", None, "Ho.<e>", "Blue.<e>"),
    ],
    ids=["ChatML", "Llama 3", "Mistral", "marked"],
)
def test_the_answers_and_their_ends_count_and_nothing_else(
    template, eos, start, first, second
):
    """Neither headers, nor other turns, nor the line behind the end of a turn."""
    chat = TWO[template == MISTRAL :]
    tokenizer = build(template, eos=eos)
    found = encoded({"messages": chat}, tokenizer)
    start = start or "<s>system\nBe brief.<e>\n<s>user\nHi<e>\n<s>assistant\n"
    assert runs(found, tokenizer) == [start, first, second]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode([*found.prompt, *found.responses[0]]) == whole
    last = encoded({"messages": chat}, tokenizer, scored="completion")
    before = tokenizer.apply_chat_template(
        chat[:-1], tokenize=False, add_generation_prompt=True
    )
    assert runs(last, tokenizer) == [before, second]
    every = encoded({"messages": chat}, tokenizer, scored="all")
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert every == (ids[:1], (ids[1:],), ())


def test_a_mask_by_hand():
    """Of ChatML: <s>user⏎Hi<e>⏎<s>assistant⏎ is the prompt, then Ho.<e>⏎<s>user…"""
    found = encoded({"messages": TWO[1:]}, build(CHATML))
    answer, between = "1111", "0" + "0" * len("suserN") + "00000"
    asked, last = "0" + "0" * len("sassistantN"), "1" * len("Blue.e") + "0"
    assert len(found.prompt) == len("suserNHieNsassistantN")
    mask = "".join(str(int(counts)) for counts in found.scored[0])
    assert mask == answer + between + asked + last


def test_a_marked_template_is_believed_as_transformers_reads_it():
    tokenizer = build(MARKED)
    found = encoded({"messages": TWO}, tokenizer)
    theirs = tokenizer.apply_chat_template(
        TWO, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [0] * len(found.prompt) + [int(counts) for counts in found.scored[0]]
    assert mask == theirs["assistant_masks"]
    assert [*found.prompt, *found.responses[0]] == theirs["input_ids"]


def test_marks_that_leave_out_the_end_are_told(caplog):
    template = MARKED.replace("<e>{% endgeneration %}", "{% endgeneration %}<e>")
    with caplog.at_level("WARNING"):
        found = encoded({"messages": TWO}, build(template))
    assert runs(found, build(template))[1:] == ["Ho.", "Blue."]
    assert "does not learn to end its turn" in caplog.text


def test_marks_around_nothing_are_refused():
    template = MARKED.replace(
        "{{ m.content }}<e>{% endgeneration %}", "{% endgeneration %}"
    )
    with pytest.raises(DataError, match="f:1: .*marks nothing of an answer"):
        encoded({"messages": TWO}, build(template))


def test_tools_are_called_and_what_they_say_does_not_count():
    """A call has null content, as in published sets; `tools` reach the template."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    chat = [
        say("user", "Bern?"),
        say("assistant", None, tool_calls=[call]),
        say("tool", "Rain"),
        say("assistant", "Wet."),
    ]
    tokenizer = build(CHATML)
    found = encoded({"messages": chat, "tools": [call]}, tokenizer)
    start, *scored = runs(found, tokenizer)
    assert start.startswith("<s>tools weather<e>\n<s>user\nBern?")
    assert scored == ["<call>weather</call><e>", "Wet.<e>"]


def test_the_column_system_is_a_turn_of_the_chat():
    tokenizer = build(CHATML)
    for scored in ("assistant", "completion", "all"):
        with_column = {"messages": TWO[1:], "system": TWO[0]["content"]}
        found = encoded(with_column, tokenizer, scored=scored)
        assert found == encoded({"messages": TWO}, tokenizer, scored=scored)


@pytest.mark.parametrize(
    "template, message",
    [(LAST_SYSTEM, "what comes before message 2"), (THINKING, "message 2 ")],
)
def test_turns_that_cannot_be_told_are_refused(template, message):
    """The first is rendered otherwise once more follows; a last turn is no trouble."""
    said = f"f:1: the chat template renders {message}.*otherwise where more follows"
    with pytest.raises(DataError, match=said):
        encoded({"messages": TWO}, build(template))
    found = encoded({"messages": TWO}, build(THINKING), scored="completion")
    assert runs(found, build(THINKING))[1:] == ["<think></think>Blue.<e>"]


def test_what_asks_to_speak_may_be_another_than_what_was_said():
    """The prompt asks for thoughts and none were written: the answer counts alone."""
    template = CHATML.replace(
        "<s>assistant\n{% endif %}", "<s>assistant\n<think>{% endif %}"
    )
    found = encoded({"messages": TWO}, build(template))
    assert runs(found, build(template))[1:] == ["Ho.<e>", "Blue.<e>"]


def test_a_token_over_a_boundary_counts_where_it_holds_a_letter_of_the_answer():
    """The template's space and the answer's first letter are one token, ␣B."""
    template = MISTRAL.replace("[/I]{% else %} ", "[/I] {% else %}")
    tokenizer = build(template, merges=[(" ", "B")])
    found = encoded({"messages": TWO[1:]}, tokenizer)
    assert runs(found, tokenizer) == ["<b>[I] Hi[/I] ", "Ho.<e>", " Blue.<e>"]


def test_a_chat_of_very_many_turns_is_ended(monkeypatch):
    """Each turn is found by rendering all before it: 50,000 turns are hours."""
    monkeypatch.setattr(bounds, "ROW_SECONDS", 0.05)
    turns = {"messages": [say("user", "Hi"), say("assistant", "Ho.")] * 500}
    with pytest.raises(ModelError, match=r"f:1: .* 0.05 s to show where the turns of"):
        encoded(turns, build(CHATML), scored="assistant")
    assert len(encoded(turns, build(CHATML), scored="all").responses) == 1


def test_white_space_is_no_end_of_a_turn_unless_nothing_else_is():
    """Without a token that ends it, the line is what ends a turn."""
    template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    found = encoded({"messages": TWO}, build(template))
    assert runs(found, build(template))[1:] == ["Ho.\n", "Blue.\n"]


def test_chats_may_begin_with_the_assistant_and_end_with_the_user():
    chat = [say("assistant", "Ho."), *TWO[1:4]]
    found = encoded({"messages": chat}, build(CHATML))
    assert runs(found, build(CHATML)) == ["<s>assistant\n", "Ho.<e>", "Ho.<e>"]
    text = build(CHATML).decode(found.responses[0])
    assert text.endswith("Sky?<e>\n")


PAIR = {
    "prompt": TWO[:2],
    "chosen": TWO[2:],
    "rejected": [say("assistant", "Hum.")],
}


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_turns_of_the_user_in_a_pair_count_unless_they_are_told_not_to(
    template, caplog
):
    """As TRL has it, all behind the prompt counts; and it is said."""
    tokenizer = build(template)
    found = encoded(PAIR, tokenizer, kind="pairs")
    start = "<s>system\nBe brief.<e>\n<s>user\nHi<e>\n<s>assistant\n"
    whole = "Ho.<e>\n<s>user\nSky?<e>\n<s>assistant\nBlue.<e>\n"
    assert runs(found, tokenizer) == [start, whole]
    assert runs(found, tokenizer, 1) == [start, "Hum.<e>\n"]
    found = encoded(PAIR, tokenizer, kind="pairs", scored="assistant")
    assert runs(found, tokenizer) == [start, "Ho.<e>", "Blue.<e>"]
    assert runs(found, tokenizer, 1) == [start, "Hum.<e>"]
    with caplog.at_level("WARNING"):
        _, counts = cut(rows(PAIR, "pairs"), tokenizer)
    assert counts.other_turns_scored == 1
    assert counts.render().endswith("; turns of others scored in 1 rows")
    assert "data.scored='assistant' leaves them out" in caplog.text
    _, counts = cut(rows(PAIR, "pairs", scored="assistant"), tokenizer)
    assert counts.other_turns_scored == 0


def test_earlier_answers_in_a_marked_prompt_do_not_count():
    tokenizer = build(MARKED)
    row = {"prompt": TWO[:4], "chosen": TWO[4:], "rejected": [say("assistant", "No")]}
    found = encoded(row, tokenizer, kind="pairs", scored="assistant")
    assert runs(found, tokenizer)[1:] == ["Blue.<e>"]
    assert runs(found, tokenizer, 1)[1:] == ["No<e>"]


def cut(raw, tokenizer, max_tokens=512, max_prompt_tokens=256, on_bad_row="error"):
    return tokenize(
        raw,
        tokenizer,
        join="separate",
        chat_template=None,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        truncate_prompt="keep_end",
        on_bad_row=on_bad_row,
    )


def test_a_mask_is_cut_with_its_tokens():
    """The prompt of 21 tokens keeps 3; then 10 of the response fit: Ho.<e>⏎<s>user."""
    raw = rows({"messages": TWO[1:]})
    ((record,), counts) = cut(raw, build(CHATML), 13, 3)
    assert len(record.prompt) == 3 and counts.prompt_tokens_cut == 18
    assert len(record.responses[0]) == 10
    assert record.token["scored"][0].tolist() == [True] * 4 + [False] * 6


def test_a_row_whose_answers_were_cut_off_is_bad():
    """Of two responses that begin alike, one may have its first answer late."""
    late = Encoded([1], ([2, 3, 4], [2, 5]), ([False, False, True], [True, True]))
    kept, _ = _cut(late, partial(truncate, **LIMITS, max_tokens=4))
    assert kept == late
    with pytest.raises(BadRow, match="leave nothing of a part"):
        _cut(late, partial(truncate, **LIMITS, max_tokens=3))


@pytest.mark.parametrize(
    "fields, scored, reason",
    [
        ({"messages": []}, "", "empty"),
        ({"messages": "Hi"}, "", "wrong type"),
        ({"messages": [say("user", "Hi")]}, "", "no answer"),
        ({"messages": TWO[:4]}, "completion", "wrong role"),
        ({"messages": None}, "", "null"),
        ({"messages": [say("user", None)]}, "", "null"),
        ({"text": TWO}, "", "wrong type"),
        ({"text": " "}, "", "empty"),
        ({"text": "Hi"}, "assistant", "no answer"),
        ({"text": "Hi"}, "completion", "no answer"),
        ({"text": "Hi", "system": "Be brief."}, "", "system beside a string"),
    ],
)
def test_rows_without_what_is_to_count_are_refused(fields, scored, reason):
    good = ("f:1", {"messages": TWO} if scored != "all" else {"text": "Hi"})
    kept, counts = validate(
        [good, ("f:2", fields)],
        kind="completions",
        format="",
        on_bad_row="drop",
        scored=scored,
    )
    assert len(kept) == 1 and counts.dropped == {reason: 1}


def test_of_a_text_all_counts_but_the_first_token_which_nothing_predicts():
    tokenizer = build(CHATML)
    ids = tokenizer("Hoho", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    for scored in ("", "all"):
        found = encoded({"text": "Hoho"}, tokenizer, scored=scored)
        assert found == (ids[:1], ([*ids[1:], end],), ())
    prompted = {"prompt": "Ho", "completion": "ho"}
    assert encoded(prompted, tokenizer, scored="all") == found
    assert encoded(prompted, tokenizer).prompt == ids[:2]


def test_prompt_and_completion_as_a_chat():
    """Everything behind the prompt, unless it is said that the answer alone counts."""
    row, tokenizer = {"prompt": TWO[:4], "completion": TWO[4:]}, build(CHATML)
    assert runs(encoded(row, tokenizer), tokenizer)[1:] == ["Blue.<e>\n"]
    found = encoded(row, tokenizer, scored="assistant")
    assert runs(found, tokenizer)[1:] == ["Blue.<e>"]
    found = encoded(row, tokenizer, scored="all")
    assert found == encoded({"messages": TWO}, tokenizer, scored="all")


def test_strings_are_all_answer():
    """There are no turns in them to tell apart."""
    row, tokenizer = {"prompt": "Ho", "completion": "ho"}, build(CHATML)
    assert (
        encoded(row, tokenizer, scored="assistant")[:2] == encoded(row, tokenizer)[:2]
    )


def test_a_slow_tokenizer_is_refused():
    tokenizer = build(CHATML)

    class Slow:
        is_fast, eos_token_id, name_or_path = False, 3, "here"
        chat_template, added_tokens_decoder = CHATML, {}
        get_chat_template = tokenizer.get_chat_template
        apply_chat_template = tokenizer.apply_chat_template

    with pytest.raises(ModelError, match="none of the fast ones"):
        encode_all(rows({"messages": TWO}), Slow(), join="separate", chat_template=None)
