"""Files whose parts are aimed at: tokenizers, headers of weights, tables, turns."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate as mutate
import numpy as np
import pyarrow
import pyarrow.parquet
from fuzz_cases import Base, Case, showing, training
from fuzz_models import MODEL, header_of, write_header
from fuzz_rows import ROWS, rows_of

HUGE = 10**9
REGEX = {"Regex": r"(a+)+$"}
ENDLESS = {"Regex": r"(e|[a-z]|.)*(x+x+)+y"}
FIXED = {"strategy": {"Fixed": HUGE}, "direction": "Right", "pad_to_multiple_of": None}
FIXED |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
CUT = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
TOKENIZER: tuple[tuple[str, Any], ...] = (  # part -> what stands there
    ("padding", FIXED),
    ("padding", FIXED | {"strategy": "BatchLongest"}),
    ("padding", FIXED | {"strategy": {"Fixed": 64}}),
    ("padding", FIXED | {"strategy": "BatchLongest", "pad_to_multiple_of": HUGE}),
    ("truncation", CUT),
    ("truncation", CUT | {"max_length": 0}),
    ("truncation", CUT | {"stride": 5}),
    ("normalizer", {"type": "Replace", "pattern": REGEX, "content": "b"}),
    ("normalizer", {"type": "Replace", "pattern": ENDLESS, "content": "b"}),
    (
        "normalizer",
        {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10**6},
    ),
    ("normalizer", {"type": "Prepend", "prepend": "x" * 10**6}),
    ("normalizer", {"type": "Lowercase"}),
    ("normalizer", {"type": "Sequence", "normalizers": []}),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    ("normalizer", {"type": "Nope"}),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False},
    ),
    ("pre_tokenizer", {"type": "Whitespace"}),
    ("pre_tokenizer", {"type": "Digits", "individual_digits": True}),
    ("pre_tokenizer", None),
    ("decoder", None),
    ("decoder", {"type": "Fuse"}),
    (
        "decoder",
        {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10**7},
    ),
    (
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 10**4,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
    ),
    (
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
            "pair": [],
            "special_tokens": {},
        },
    ),
    ("model/unk_token", "<nope>"),
    ("model/dropout", 0.5),
    ("model/dropout", 7.0),
    ("model/byte_fallback", True),
    ("model/merges", []),
    ("model/merges", ["a b c"]),
    ("model/merges", [["a", "zz"]]),
    ("model/vocab", {}),
    ("model/vocab", {"a": HUGE}),
    ("model/vocab", {"a": 0, "b": 0}),
    ("model/vocab", {"a": -1}),
    ("model/type", "WordPiece"),
    ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}),
    ("model", {"type": "Unigram", "vocab": [["a", float("nan")]], "unk_id": 0}),
    ("model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": HUGE}),
    ("model", {"type": "Unigram", "vocab": [], "unk_id": None}),
    ("added_tokens/0/id", HUGE),
    ("added_tokens/0/id", 2**32 - 1),
    ("added_tokens/0/content", ""),
    ("added_tokens/0/content", "e"),
    ("added_tokens/2/special", False),
    ("added_tokens/2/lstrip", True),
    ("added_tokens", []),
    ("version", "9.0"),
)
SETTINGS: tuple[tuple[str, Any], ...] = (  # of tokenizer_config.json
    ("model_max_length", 1),
    ("model_max_length", HUGE),
    ("model_max_length", "x"),
    ("padding_side", "left"),
    ("truncation_side", "up"),
    ("eos_token", {"content": "</s>", "lstrip": True}),
    ("eos_token", "<|new|>"),
    ("eos_token", None),
    ("pad_token", "</s>"),
    ("bos_token", ""),
    ("bos_token", ["<s>"]),
    ("add_bos_token", True),
    ("add_eos_token", True),
    ("tokenizer_class", "NopeTokenizer"),
    ("tokenizer_class", "LlamaTokenizer"),
    ("tokenizer_class", 7),
    ("auto_map", {"AutoTokenizer": ["x.Y", None]}),
    ("chat_template", [{"name": "default", "template": "{{ messages }}"}]),
    ("chat_template", [{"name": "a"}]),
    ("chat_template", {"default": 7}),
    ("chat_template", 7),
    ("added_tokens_decoder", {"999999999": {"content": "<big>", "special": True}}),
    ("added_tokens_decoder", {"x": {"content": "<big>"}}),
    ("added_tokens_decoder", {"5": 7}),
    ("extra_special_tokens", {"image_token": "<image>"}),
    ("additional_special_tokens", ["e", "good"]),
    ("clean_up_tokenization_spaces", True),
    ("split_special_tokens", True),
    ("legacy", "x"),
    ("sp_model_kwargs", {"alpha": 0.1}),
    ("response_schema", {"a": 1}),
    ("model_input_names", []),
    ("model_input_names", 7),
)


def put(tree: Any, path: str, found: Any) -> None:
    """Puts a value at a path of a tree."""
    *steps, last = path.split("/")
    for step in steps:
        tree = tree[int(step) if isinstance(tree, list) else step]
    tree[int(last) if isinstance(tree, list) else last] = found


def tokenizer_parts(random: Random, base: Base, folder: Path) -> Case:
    """A part of a tokenizer, or a setting of it."""
    model = folder / "model"
    shutil.copytree(base.model, model)
    which = random.random() < 0.6
    name = "tokenizer.json" if which else "tokenizer_config.json"
    tree = json.loads((model / name).read_bytes())
    place, found = random.choice(TOKENIZER if which else SETTINGS)
    put(tree, place, found)
    (model / name).write_text(mutate.text_of(tree))
    if not which and place == "chat_template":
        (model / "chat_template.jinja").unlink()
    rows = {"data__train": random.choice((base.pairs, base.chats))}
    verb = showing if random.random() < 0.7 else training
    what = f"{place} = {mutate.shown(found)}"
    return Case(verb(base, model__path=model, **rows), what, (3, 4))


KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "BOOL", "C64")
NAMES = ("../run/x.safetensors", "/etc/passwd", "", ".", "x" * 300, "config.json", 7)
NAMES += (None, [], "model-00001-of-00002.bin", "~/x", "a\0b", "tokenizer.json")


def header(random: Random, base: Base, folder: Path) -> Case:
    """What the header or the index of weights says of a tensor."""
    model = folder / "model"
    shutil.copytree(base.model, model)
    path = random.choice(sorted(model.glob("*.safetensors")))
    tree, body = header_of(path)
    name = random.choice([n for n in tree if n != "__metadata__"])
    told, how = tree[name], random.randrange(9)
    first, last = told["data_offsets"]
    if how == 0:
        told["dtype"] = random.choice(KINDS)
    elif how == 1:
        told["shape"] = random.choice(
            ([], [0], [-1], [HUGE, HUGE], [2**63], told["shape"][::-1], [1.5], ["4"])
        )
    elif how == 2:
        told["data_offsets"] = random.choice(
            ([first, last + 4], [last, first], [0, 0], [-8, 8], [first], [HUGE, 2**63])
        )
    elif how == 3:
        other = random.choice([n for n in tree if n != "__metadata__"])
        told["data_offsets"] = tree[other]["data_offsets"]
    elif how == 4:
        tree[name + random.choice((".x", "\0", "é", "_scale", "/../x"))] = tree.pop(
            name
        )
    elif how == 5:
        tree["__metadata__"] = random.choice(
            (None, [], {"format": 7}, {"a": "x" * 10**6})
        )
    elif how == 6:
        tree = {f"{key}{n}": value for n in range(3000) for key, value in tree.items()}
    write_header(path, tree, body)
    what = f"{name} is {mutate.shown(told)}"
    if how > 6:
        index = model / "model.safetensors.index.json"
        whole = json.loads(index.read_bytes())
        key = random.choice(sorted(whole["weight_map"]))
        given = random.choice(NAMES)
        whole["weight_map"][key] = given
        index.write_text(mutate.text_of(whole))
        what = f"{key} lies in {mutate.shown(given)}"
    return Case(training(base, model__path=model), what, MODEL)


TYPES: tuple[pyarrow.DataType, ...] = (
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.list_(pyarrow.string()),
    pyarrow.large_list(pyarrow.string()),
    pyarrow.list_(pyarrow.string(), 1),
    pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]),
    pyarrow.list_(
        pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    ),
    pyarrow.map_(pyarrow.string(), pyarrow.string()),
    pyarrow.float16(),
    pyarrow.decimal256(40),
    pyarrow.uint64(),
    pyarrow.bool_(),
    pyarrow.null(),
    pyarrow.binary(3),
    pyarrow.time64("ns"),
)


def _valued(kind: pyarrow.DataType, text: str) -> Any:
    """Returns something like a text, of a type of tables."""
    message = {"role": "user", "content": text}
    if pyarrow.types.is_struct(kind):
        return message
    if pyarrow.types.is_map(kind):
        return [("content", text)]
    if pyarrow.types.is_nested(kind):
        return [message if pyarrow.types.is_struct(kind.value_type) else text]  # pyright: ignore
    if pyarrow.types.is_fixed_size_binary(kind) and not pyarrow.types.is_decimal(kind):
        return b"\xff\x00a"
    if pyarrow.types.is_null(kind):
        return None
    plain = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    if plain or pyarrow.types.is_dictionary(kind) or "string" in str(kind):
        return text
    if "binary" in str(kind):
        return text.encode()
    whole = True if pyarrow.types.is_boolean(kind) else 1
    return np.float16(1) if kind == pyarrow.float16() else whole


def table(random: Random, base: Base, folder: Path) -> Case:
    """A table whose columns are of other types, names or numbers."""
    rows = rows_of(random.choice((base.pairs, base.chats)))
    found = pyarrow.Table.from_pylist(rows)
    name, how = random.choice(found.column_names), random.randrange(8)
    kind = random.choice(TYPES)
    values = [_valued(kind, f" words {n} and more") for n in range(len(found))]
    if random.random() < 0.3:
        values[random.randrange(len(values))] = None
    column = pyarrow.array(values, kind)
    place = found.column_names.index(name)
    what, path = f"{name} of {kind}", folder / "rows.parquet"
    if how < 5:
        found = found.set_column(place, name, column)
    elif how == 5:
        found, what = found.append_column(name, column), f"{name} twice, of {kind}"
    elif how == 6:
        found, what = found.slice(0, 0), "no rows"
    else:
        found, what = found.select([]), "no columns"
    ending = random.choice((".parquet", ".parquet", ".arrow"))
    if ending == ".arrow":
        path = folder / "rows.arrow"
        with pyarrow.ipc.new_file(path, found.schema) as file:
            file.write_table(found)
    else:
        pyarrow.parquet.write_table(found, path)
    verb = showing if random.random() < 0.7 else training
    return Case(verb(base, data__train=path), f"{path.name}: {what}", ROWS)


CONTENTS = (
    [{"type": "text", "text": "hello"}],
    [{"type": "image", "url": "http://x/y.png"}, {"type": "text", "text": "hello"}],
    [{"type": "text"}],
    ["hello"],
    {"text": "hello"},
    7,
    None,
    "",
    " ",
    "\n" * 1000,
    "a" * 10**6,
    "a " * 200_000,
    "\u0000",
    "\ud83d",
    "\u202e\u200b\ufeff",
    "🙂" * 5000,
    "<|assistant|>",
    "</s></s></s>",
    "{{ 1/0 }}",
)
ROLES = ("assistant", "user", "system", "tool", "developer", "", "ASSISTANT", 7, None)
CALLS = (
    [{"function": {"name": "look", "arguments": "{"}}],
    [{"type": "function", "function": {"name": "look", "arguments": {"a": [1]}}}],
    [{"function": 7}],
    "x",
    [[]],
    {},
    [{"id": "x" * 10**5, "function": {"name": "look", "arguments": "{}"}}],
)


def turn(random: Random, base: Base, folder: Path) -> Case:
    """A message of a chat: content, role, calls of tools, how many there are."""
    name = random.choice(("chats", "messages"))
    rows = rows_of(base.folder / f"{name}.jsonl")
    at = random.randrange(3)
    field = "messages" if name == "messages" else random.choice(("prompt", "chosen"))
    turns = rows[at][field]
    message, how = random.choice(turns), random.randrange(6)
    if how < 2:
        message["content"] = random.choice(CONTENTS)
    elif how == 2:
        message["role"] = random.choice(ROLES)
    elif how == 3:
        message["tool_calls"] = random.choice(CALLS)
        message["content"] = random.choice((None, "x"))
    elif how == 4:
        turns *= random.choice((0, 2, 2000, 50_000))
    else:
        tools = ([7], "[", {"a": 1}, [{"function": None}], "x" * 10**6, [{}] * 10**5)
        rows[at]["tools"] = random.choice(tools)
    shown = mutate.shown(rows[at].get("tools") if how > 4 else message)
    what = f"{field}: {len(turns)} messages, {shown}"
    path = folder / "rows.jsonl"
    path.write_text("".join(mutate.text_of(row) + "\n" for row in rows))
    changed: dict[str, object] = {"data__train": path}
    if random.random() < 0.2:
        changed["data__max_tokens"] = 2**22 - 1
        changed["data__max_prompt_tokens"] = 2**21
    if name == "messages":
        changed |= {"objective": "sft", "loss__name": "sft", "ref__mode": "none"}
    verb = showing if random.random() < 0.7 or len(turns) > 99 else training
    argv = verb(base, at, **changed) if verb is showing else verb(base, **changed)
    return Case(argv, what, ROWS)
