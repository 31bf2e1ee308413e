"""Ids, boundaries and cuts, by hand and against two outside systems."""

import json
import os

import pytest
from row_cases import located, validate

from dpo_jax.data.encode import encode
from dpo_jax.data.kinds import KINDS, RawRow
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import render, template_text
from dpo_jax.data.tokenize import (
    Cut,
    check_ids,
    is_dated,
    load_tokenizer,
    max_token_id,
    read_chat_template,
    tokenize,
    truncate,
)
from dpo_jax.errors import DataError, ModelError

transformers = pytest.importorskip("transformers")
SHARED = os.environ.get("DPO_JAX_SHARED", "")
needs_shared = pytest.mark.skipif(not SHARED, reason="needs DPO_JAX_SHARED")

NAMES = ("chosen", "rejected")
PAD, BOS, EOS = 0, 1, 2
WORDS = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "[u]": 3, "[a]": 4}
LETTERS = {letter: 5 + i for i, letter in enumerate("abcdefgh ")}
AB = 5 + len(LETTERS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '[u]' if m.role == 'user' else '[a]' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def build(single="<bos> $A", template=None, **special):
    """A tokenizer of the letters a–h and space that merges a and b."""
    from tokenizers import Tokenizer, decoders, models, processors

    vocabulary = WORDS | LETTERS | {"ab": AB}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    bare.decoder = decoders.Fuse()
    bare.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        additional_special_tokens=["[u]", "[a]"],
        **names | special,
    )
    tokenizer.chat_template = template
    return tokenizer


def ids(text):
    return [LETTERS[letter] for letter in text]


def row(prompt, *responses, index=0):
    return RawRow(prompt, responses, where=f"f:{index + 1}", index=index)


def one(raw, tokenizer, join="separate", template=None):
    encoded = encode(raw, tokenizer, join=join, chat_template=template)
    return [encoded.prompt, *encoded.responses]


def cut(rows, tokenizer, **changes):
    options = {
        "join": "separate",
        "chat_template": None,
        "max_tokens": 512,
        "max_prompt_tokens": 256,
        "truncate_prompt": "keep_end",
        "on_bad_row": "error",
    }
    return tokenize(rows, tokenizer, **options | changes)


def test_bos_and_eos_stand_where_they_should():
    """BOS as the tokenizer puts it, none before responses, one EOS after each."""
    found = one(row("cd", " e", " f<eos>"), build())
    assert found == [[BOS, *ids("cd")], [*ids(" e"), EOS], [*ids(" f"), EOS]]
    assert one(row("cd", " e"), build(single="$A"))[0] == ids("cd")


@pytest.mark.parametrize("join", ["separate", "joint"])
def test_a_response_that_was_cut_short_gets_no_eos(join):
    """Of a pair each says so by itself; a text that holds EOS keeps it."""
    pair = {"prompt": "cd", "chosen": " e", "rejected": " f"}
    for cut, ends in (("chosen", ([], [EOS])), ("rejected", ([EOS], []))):
        raw = KINDS["pairs"](pair | {f"{cut}_ended": False})
        found = one(raw, build(), join)[1:]
        assert found == [[*ids(" e"), *ends[0]], [*ids(" f"), *ends[1]]]
    for said, end in ((False, []), (True, [EOS]), (None, [EOS])):
        fields = {"prompt": "cd", "completion": " e", "ended": said, "label": True}
        for kind in ("completions", "singles"):
            raw = KINDS[kind](fields)
            assert one(raw, build(), join)[1:] == [[*ids(" e"), *end]]
    raw = KINDS["completions"](pair | {"chosen_ended": False})
    assert one(raw, build(), join)[1:] == [ids(" e")]


def test_ids_are_taken_as_they_are():
    """Nothing is encoded, appended or taken off; also beside texts and chats."""
    tokenizer = build()
    pair = {"prompt_ids": [5], "chosen_ids": [6, EOS], "rejected_ids": [EOS, 7]}
    more = {"prompt": [{"role": "user", "content": "c"}], "chosen_ended": True}
    for fields in (pair, pair | more):
        raw = KINDS["pairs"](fields)
        assert one(raw, tokenizer) == [[5], [6, EOS], [EOS, 7]]
    assert raw.prompt == more["prompt"]
    assert one(KINDS["completions"](pair), tokenizer) == [[5], [6, EOS]]
    assert one(KINDS["singles"](pair), tokenizer) == [[5], [6, EOS], [EOS, 7]]
    sampled = {"prompt": "cd", "prompt_ids": [5], "completion_ids": [7], "text": "x"}
    raw = KINDS["completions"](sampled | {"ended": False})
    assert one(raw, tokenizer) == [[5], [7]]
    assert one(KINDS["singles"](sampled | {"label": 0}), tokenizer) == [[5], [7]]
    rows = [row("c", "d"), raw, row("d", "c")]
    records, _ = cut([r._replace(index=i) for i, r in enumerate(rows)], tokenizer)
    assert [record.responses[0].tolist() for record in records] == [
        [*ids("d"), EOS],
        [7],
        [*ids("c"), EOS],
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen_ids": [6, 10_000]}, "id 10000, but the tokenizer's largest is"),
        ({"chosen_ids": [-1]}, "holds -1; ids are ≥ 0"),
        ({"chosen_ids": []}, "'chosen_ids' is empty"),
        ({"chosen_ids": [1.5]}, "'chosen_ids' holds float, no id"),
        ({"chosen_ids": "6 7"}, "'chosen_ids' is str"),
        ({"chosen_ids": [7]}, "'chosen_ids' and 'rejected_ids' are identical"),
        ({"chosen_ids": None}, "'chosen_ids' is null"),
    ],
)
def test_faulty_ids_are_bad_rows(change, said):
    good = {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}
    with pytest.raises((BadRow, DataError)) as raised:
        cut([KINDS["pairs"](good | change)], build())
    assert said in getattr(raised.value, "detail", str(raised.value))


def test_an_answer_of_a_chat_that_was_cut_short_is_given_as_ids():
    chat = {"prompt": [{"role": "user", "content": "c"}], "ended": False}
    answer = [{"role": "assistant", "content": "d"}]
    with pytest.raises(BadRow) as raised:
        KINDS["completions"](chat | {"completion": answer})
    assert raised.value.reason == "cut chat" and "as ids" in raised.value.detail


def test_an_eos_that_the_tokenizer_puts_is_no_part_of_the_prompt():
    """Also for a tokenizer whose BOS and EOS are one token, as OPT's."""
    ended = build(single="<bos> $A <eos>")
    for join in ("separate", "joint"):
        assert one(row("c", "d"), ended, join) == [[BOS, *ids("c")], [*ids("d"), EOS]]
    same = build(single="<eos> $A", bos_token="<eos>")
    assert one(row("c", "d"), same) == [[EOS, *ids("c")], [*ids("d"), EOS]]
    assert one(row("", "d"), same) == [[EOS], [*ids("d"), EOS]]


def test_pad_may_be_eos():
    """C5: ids say nothing of masks, so the EOS of the response is kept."""
    tokenizer = build(pad_token="<eos>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert one(row("c", "d"), tokenizer)[1] == [*ids("d"), EOS]


def test_joint_cuts_at_what_all_three_share():
    """A token over the boundary belongs to the responses of the whole row."""
    raw = row("ca", "bd", "e")
    assert one(raw, build()) == [
        [BOS, *ids("ca")],
        [*ids("bd"), EOS],
        [*ids("e"), EOS],
    ]
    assert one(raw, build(), "joint") == [
        [BOS, *ids("c")],
        [AB, *ids("d"), EOS],
        [*ids("ae"), EOS],
    ]


def test_one_response_is_enough():
    for join in ("separate", "joint"):
        assert one(row("c", "d"), build(), join) == [
            [BOS, *ids("c")],
            [ids("d")[0], EOS],
        ]


def chat(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_chat_ends_as_its_template_ends_with_one_bos():
    raw = row(chat("c", "d", "e"), chat("", "f")[1:], chat("", "gh")[1:])
    prompt = [BOS, 3, *ids("c"), 4, *ids("d"), EOS, 3, *ids("e"), 4]
    expected = [prompt, [*ids("f"), EOS], [*ids("gh"), EOS]]
    assert one(raw, build(template=TEMPLATE)) == expected
    assert one(raw, build(), template=TEMPLATE) == expected
    open_end = TEMPLATE.replace("<eos>", "")
    assert one(raw, build(), template=open_end)[1] == ids("f")


def test_chats_and_strings_keep_their_order():
    rows = [row("c", "d"), row(chat("c"), chat("", "d")[1:], index=5), row("e", "f")]
    records, _ = cut(rows, build(template=TEMPLATE))
    assert [r.prompt.tolist() for r in records] == [
        [BOS, *ids("c")],
        [BOS, 3, *ids("c"), 4],
        [BOS, *ids("e")],
    ]
    assert [record.index for record in records] == [0, 5, 0]


def test_a_chat_without_template_names_the_remedy():
    raw = row(chat("c"), chat("", "d")[1:])
    with pytest.raises(ModelError, match="data.chat_template=FILE"):
        one(raw, build())
    with pytest.raises(ModelError, match="the chat template cannot be read"):
        one(raw, build(), template="{% if %}")


def test_a_row_that_the_template_refuses_is_a_bad_row():
    system = [{"role": "system", "content": "c"}]
    answer = chat("", "d")[1:]
    rows = [row(system, answer), row(chat("c"), answer, index=1)]
    tokenizer = build(template=TEMPLATE)
    with pytest.raises(DataError, match="f:1: the chat template refuses it: no system"):
        cut(rows, tokenizer)
    records, counts = cut(rows, tokenizer, on_bad_row="drop")
    assert counts.dropped == {"refused by template": 1}
    assert [record.index for record in records] == [1]


def test_truncate_by_hand():
    """P = 6 and responses of 5 and 2, cut to 8 tokens with 4 of the prompt."""
    prompt, responses = [1, 2, 3, 4, 5, 6], ([11, 12, 13, 14, 15], [21, 22])
    limits = {"max_tokens": 8, "max_prompt_tokens": 4}
    found = truncate(prompt, responses, **limits, side="keep_end")
    assert found == ([3, 4, 5, 6], ([11, 12, 13, 14], [21, 22]), Cut(2, 1))
    found = truncate(prompt, responses, **limits, side="keep_start")
    assert found == ([1, 2, 3, 4], ([11, 12, 13, 14], [21, 22]), Cut(2, 1))


@pytest.mark.parametrize(
    "max_tokens, max_prompt_tokens, room, expected",
    [
        (11, 1, "rest", (6, 5, 2, Cut(0, 0))),
        (10, 5, "rest", (5, 5, 2, Cut(1, 0))),
        (10, 9, "rest", (6, 4, 2, Cut(0, 1))),
        (10, 9, "fixed", (6, 1, 1, Cut(0, 5))),
        (10, 4, "fixed", (4, 5, 2, Cut(2, 0))),
        (6, 6, "rest", (6, 0, 0, Cut(0, 7))),
        (3, 0, "rest", (0, 3, 2, Cut(6, 2))),
    ],
)
def test_truncate_lengths(max_tokens, max_prompt_tokens, room, expected):
    prompt, responses, lost = truncate(
        [1] * 6,
        ([2] * 5, [3] * 2),
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        side="keep_end",
        room=room,
    )
    assert (len(prompt), *map(len, responses), lost) == expected


def test_cuts_are_counted():
    rows = [row("cdefgh", "abcd", "e"), row("c", "d", "e", index=1)]
    records, counts = cut(rows, build(single="$A"), max_tokens=5, max_prompt_tokens=2)
    assert records[0].prompt.tolist() == ids("gh")
    assert [r.tolist() for r in records[0].responses] == [
        [AB, *ids("cd")],
        [*ids("e"), EOS],
    ]
    assert counts._asdict() == {
        "kept": 2,
        "dropped": {},
        "cut_rows": 1,
        "prompt_tokens_cut": 4,
        "response_tokens_cut": 1,
        "double_bos": 0,
        "other_turns_scored": 0,
    }
    assert counts.render() == "cut 1 of 2 rows (4 prompt, 1 response tokens)"


def test_rows_that_lose_a_part_are_bad():
    rows = [row("cdef", "d", "e"), row("c", "d", "e", index=1)]
    options = {"max_tokens": 4, "max_prompt_tokens": 4}
    with pytest.raises(DataError, match="f:1: .*leave nothing of a part"):
        cut(rows, build(single="$A"), **options)
    records, counts = cut(rows, build(single="$A"), **options, on_bad_row="drop")
    assert counts.dropped == {"cut to nothing": 1}
    assert [record.index for record in records] == [1]
    rows = [row("", "d"), row("c", "d", index=1)]
    _, counts = cut(rows, build(single="$A"), on_bad_row="drop")
    assert counts.dropped == {"no prompt tokens": 1}
    with pytest.raises(DataError, match="f:1: the prompt has no tokens"):
        one(rows[0], build(single="$A"))
    rows = [row(chat("c"), chat("", "d")[1:])]
    with pytest.raises(DataError, match="no row can be used.*no response tokens"):
        cut(rows, build(), chat_template="c")


def test_pairs_that_are_identical_after_cutting_are_bad():
    """Both responses become cd; one cut alone, cde<eos> beside cde, stays."""
    rows = [row("c", "cdef", "cdeh"), row("c", "d", "e", index=1)]
    options = {"max_tokens": 3, "max_prompt_tokens": 1}
    with pytest.raises(DataError, match="f:1: .*identical after cutting"):
        cut(rows, build(single="$A"), **options)
    records, counts = cut(rows, build(single="$A"), **options, on_bad_row="drop")
    assert counts.dropped == {"identical after cutting (data.max_tokens)": 1}
    assert [record.index for record in records] == [1]
    _, counts = cut(rows[:1], build(single="$A"), max_tokens=6, max_prompt_tokens=1)
    assert counts.dropped == {}


def test_bos_twice_is_told(caplog):
    """The text of a rendered chat holds BOS, and this tokenizer adds another."""
    rows = [row("<bos>c", "d"), row("c", "d", index=1)]
    with caplog.at_level("WARNING"):
        records, counts = cut(rows, build())
    assert records[0].prompt.tolist() == [BOS, BOS, *ids("c")]
    assert counts.double_bos == 1
    assert counts.render().endswith("; BOS twice before 1 prompts")
    assert "BOS stands twice before 1 prompts, first before that of f:1" in caplog.text


def test_responses_may_become_identical():
    """An unknown letter is dropped by this tokenizer, which is no fault of the row."""
    found = one(row("c", "d", "dz"), build())
    assert found[1] == found[2] == [*ids("d"), EOS]


def test_words_that_a_tokenizer_refuses_are_a_data_error():
    from dpo_jax.data.sources import sentiment

    with pytest.raises(DataError, match="cannot encode the data"):
        one(row("xylophone", "x"), sentiment.tokenizer())


def test_ids_outside_the_table_are_refused_with_both_numbers():
    assert max_token_id(build()) == AB
    check_ids(AB, AB + 1)
    with pytest.raises(ModelError, match=f"largest id {AB} .* of {AB} rows"):
        check_ids(AB, AB)


def test_loading_gives_the_same_ids(tmp_path):
    build(template=TEMPLATE).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert one(row("ca", "bd"), tokenizer) == one(row("ca", "bd"), build())
    assert tokenizer.chat_template == TEMPLATE


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no folder with a tokenizer"):
        load_tokenizer(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))
    build(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no EOS token"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="has no EOS token"):
        one(row("c", "d"), build(eos_token=None))
    config = tmp_path / "tokenizer_config.json"
    canary = tmp_path / "canary"
    (tmp_path / "code.py").write_text(f"open({str(canary)!r}, 'w')")
    auto_map = {"auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    config.write_text(json.dumps(auto_map))
    with pytest.raises(ModelError, match="refuses remote code"):
        load_tokenizer(str(tmp_path))
    assert not canary.exists()
    config.write_text("<html>")
    with pytest.raises(ModelError, match="is no JSON"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "changed", [{"num_hidden_layers": 2 * 10**13}, {"num_labels": 1e12}]
)
@pytest.mark.parametrize("wrap", [dict, lambda config: {"text_config": config}])
def test_what_transformers_would_make_endless_lists_of_is_refused(
    tmp_path, changed, wrap
):
    """It reads the model's config.json before its tokenizer; Gemma 2 lists layers."""
    build().save_pretrained(tmp_path)
    config = {"model_type": "gemma2", **wrap(changed)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (name,) = changed
    with pytest.raises(ModelError, match=rf"config.json: {name}=\d.* than 100000, and"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("template", [7, {"default": 7}, ["x"]])
def test_a_template_that_is_no_text_is_refused(tmp_path, template):
    build().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chat_template": template})
    )
    with pytest.raises(ModelError, match="chat_template is|cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_chat_template_is_read_from_its_file(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(TEMPLATE)
    assert read_chat_template(str(path), build()) == TEMPLATE
    assert read_chat_template("", build()) is None
    with pytest.raises(DataError, match="data.chat_template='/no/file' cannot be read"):
        read_chat_template("/no/file", build())


def test_a_template_of_several_is_taken_by_its_name():
    named = {"rag": TEMPLATE, "tool_use": TEMPLATE}
    tokenizer = build(template=named)
    assert read_chat_template("rag", tokenizer) == TEMPLATE
    raw = RawRow(chat("c"), (chat("c", "d")[1:],), where="f:1")
    with pytest.raises(ModelError, match=r"\(rag, tool_use\) .*data.chat_template"):
        one(raw, tokenizer)
    assert one(raw, tokenizer, template=TEMPLATE) == one(raw, build(template=TEMPLATE))
    tools = raw._replace(tools=({"name": "e"},))
    with pytest.raises(DataError, match="leaves out the column 'tools'"):
        one(tools, tokenizer)
    assert one(raw, build(template=named | {"default": TEMPLATE}))


SYSTEM = {"role": "system", "content": "h"}
MOVING = (  # as Mistral's: the system prompt stands before the last word of the user
    "{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}[u]{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% endif %}{{ m.content }}[a]"
    "{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
)
SILENT = (  # as those of models that think
    "{% for m in messages %}{{ '[a]' if m.role == 'assistant' else '[u]' }}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]h{% else %}<eos>"
    "{% endif %}"
)


def test_a_prompt_that_an_answer_changes_is_refused():
    """Else the question would be scored: [u]hc[a] has [u] in common with [u]c[a]d."""
    raw = row(chat("c"), chat("c", "d")[1:])
    assert one(raw, build(), template=MOVING)[0] == [3, *ids("c"), 4]
    raw = raw._replace(prompt=[SYSTEM, *chat("c")])
    with pytest.raises(DataError, match="otherwise once it is answered"):
        one(raw, build(), template=MOVING)


def test_what_asks_for_an_answer_may_differ_from_it():
    """[u]c[a]h asks, [u]c[a]d<eos> answers, [u]c<eos> does neither: as with <think>."""
    raw = row(chat("c"), chat("c", "d")[1:])
    assert one(raw, build(), template=SILENT) == [[3, *ids("c"), 4], [*ids("d"), EOS]]


def test_a_system_message_that_a_template_leaves_out_is_refused():
    template = TEMPLATE.replace("{{ raise_exception('no system') }}", "").replace(
        "{{ m.content }}", "{{ m.content if m.role != 'system' }}"
    )
    raw = row([SYSTEM, *chat("c")], chat("c", "d")[1:])
    with pytest.raises(DataError, match="leaves out the system message"):
        one(raw, build(), template=template)


def test_whatever_a_template_raises_is_a_fault_of_the_row():
    raw = row(chat("c"), chat("c", "d")[1:])
    for template in (
        "{{ 1 / 0 }}",
        "{{ messages[9].role.x }}",
        "{{ ([] | first).x.y }}",
    ):
        with pytest.raises(DataError, match="the chat template refuses it"):
            one(raw, build(), template=template)


def test_tools_are_rendered():
    template = "{% for t in tools or [] %}{{ t.name }}{% endfor %}" + TEMPLATE
    raw = row(chat("c"), chat("c", "d")[1:])
    told = raw._replace(tools=({"name": "f"}, {"name": "g"}))
    plain, tooled = (one(r, build(), template=template) for r in (raw, told))
    assert tooled == [[*ids("fg"), *plain[0]], plain[1]]


def test_the_clock_of_a_template_is_the_given_one():
    """The 8th of any month, whatever the day is."""
    template = "{{ 'c' * (strftime_now('%d') | int) }}" + TEMPLATE
    raw = row(chat("c"), chat("c", "d")[1:])
    options = {"join": "separate", "chat_template": template}
    prompt = encode(raw, build(), **options, now="2026-07-08T10:00:00").prompt
    assert prompt[:8] == ids("c" * 8) and prompt[8:] == [BOS, 3, *ids("c"), 4]
    text = "\n  {% if x %}{% endif %}{{ strftime_now('%-d %b %Y at %H:%M, 9%%') }}"
    found = template_text(build(), text, "2026-07-08T10:09:00")
    assert render(build(), found, chat("c")) == "\n8 Jul 2026 at 10:09, 9%"
    assert template_text(build(), TEMPLATE, "2026-07-08") == TEMPLATE
    assert is_dated(template, build()) and is_dated(None, build(template=template))
    assert is_dated(None, build(template={"default": template}))
    assert not is_dated(TEMPLATE, build(template=template))
    assert not is_dated(None, build())


@needs_shared
def test_golden_reference_repository():
    """Ids and labels of the DPO paper's own code, uncut and cut, both sides."""
    with open(f"{SHARED}/goldens/reference_repo/goldens.json") as file:
        golden = json.load(file)
    tokenizer = load_tokenizer(f"{SHARED}/{golden['tokenizer']}")
    assert len(golden["rows"]) == 32
    for case in golden["rows"]:
        (record,), _ = cut(
            [row(case["prompt"], case["chosen"], case["rejected"])],
            tokenizer,
            max_tokens=case["max_length"],
            max_prompt_tokens=case["max_prompt_length"],
            truncate_prompt=case["truncation"],
            truncate_response="fixed",
        )
        for name, response in zip(
            ("chosen", "rejected"), record.responses, strict=True
        ):
            whole = [*record.prompt.tolist(), *response.tolist()]
            labels = [-100] * len(record.prompt) + response.tolist()
            assert whole == case[f"{name}_input_ids"]
            assert labels == case[f"{name}_labels"]


def golden_records(folder):
    tokenizer = load_tokenizer(f"{SHARED}/goldens/{folder}/model")
    rows, _ = validate(
        located(f"{SHARED}/goldens/{folder}/train.jsonl"),
        kind="pairs",
        format="",
        on_bad_row="error",
    )
    records, counts = cut(rows, tokenizer, join="joint", max_tokens=4096)
    assert counts.cut_rows == 0
    return tokenizer, rows, records


@needs_shared
def test_golden_rows_with_bos_hold_exactly_one():
    tokenizer, rows, records = golden_records("trl_llama_bos")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for raw, record in zip(rows, records, strict=True):
        assert record.prompt[0] == bos
        for text, response in zip(raw.responses, record.responses, strict=True):
            whole = [*record.prompt.tolist(), *response.tolist()]
            assert whole.count(bos) == 1 and whole.count(eos) == 1
            assert whole == tokenizer(raw.prompt + text)["input_ids"] + [eos]


@needs_shared
def test_golden_chats_end_as_the_template_ends():
    tokenizer, rows, records = golden_records("trl_llama_chat")
    end = tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    start = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    for raw, record in zip(rows, records, strict=True):
        assert record.prompt.tolist()[-len(start) :] == start
        for text, response in zip(raw.responses, record.responses, strict=True):
            assert response.tolist()[-len(end) :] == end
            decoded = tokenizer.decode(response)
            assert decoded == text[0]["content"] + "<|im_end|>\n"
