"""Keys of what is read, how it becomes tokens, and of the batches it lies in."""

from dpo_jax.schema.key import COUNT, NOT_NEGATIVE, Key

DATA: dict[str, Key] = {
    "data.train": Key(
        "",
        "SOURCE[:SPLIT][:WEIGHT], joined by +: a file (.jsonl, .json, .csv, .tsv, "
        ".parquet, .gz, .zst), a glob, a folder, a hub id, or a name; [:200] behind it "
        "takes the first 200 rows, [:10%] a share",
    ),
    "data.eval": Key("", "likewise; '' = none"),
    "data.path": Key("", "a local copy of a published set, or a folder of several"),
    "data.columns.prompt": Key(
        "",
        "the column of the prompt, a path in it (info.post), a template "
        "('Q: {question}'), or 'implicit' (all but the last message); '' = prompt",
    ),
    "data.columns.chosen": Key("", "likewise a column, a path or a template"),
    "data.columns.rejected": Key("", "likewise"),
    "data.columns.completion": Key("", "likewise"),
    "data.columns.label": Key("", "likewise"),
    "data.columns.messages": Key("", "likewise"),
    "data.columns.text": Key("", "likewise"),
    "data.columns.responses": Key(
        "", "likewise, of all responses: 'a,b' or 'answers[].answer'"
    ),
    "data.columns.ranking": Key("", "likewise"),
    "data.columns.scores": Key("", "likewise, of responses"),
    "data.columns.score_chosen": Key("", "likewise"),
    "data.columns.score_rejected": Key("", "likewise"),
    "data.columns.margin": Key("", "likewise"),
    "data.columns.system": Key("", "likewise"),
    "data.columns.tools": Key("", "likewise"),
    "data.columns.pair": Key(
        "",
        "how responses pair: 'sign:COLUMN' (< 0 prefers the first), 'index:COLUMN' (of "
        "the best, from 0), 'rank:COLUMN' (1 = best), 'each' (of two lists)",
    ),
    "data.columns.chat": Key("", "or 'wrap': strings become messages"),
    "data.columns.keep": Key("", "conditions on rows: 'status!=tie,score>=8'"),
    "data.columns.drop": Key(
        "", "faults to drop and count: tie, identical, null, empty, mismatched, …"
    ),
    "data.columns.pairs_per_prompt": Key(
        0, "the first so many of each prompt; 0 = all", NOT_NEGATIVE
    ),
    "data.limit": Key(
        0, "rows of each source to read, from the first; 0 = all", NOT_NEGATIVE
    ),
    "data.format": Key("", "or 'hh': transcripts", choices=("", "hh")),
    "data.chat_template": Key(
        "", "a file, or a name of the tokenizer's; '' = its default"
    ),
    "data.now": Key(
        "",
        "the date and time for a chat template that asks, as 2026-07-26T08:00:00; '' = "
        "those of the first launch, kept in config.json",
    ),
    "data.scored": Key(
        "",
        "which tokens count: 'completion' (all behind the prompt, other turns too; of "
        "{messages} the last turn), 'assistant' (its turns alone, with what ends them) "
        "or 'all' (sft); '' = 'assistant' of {messages}, 'all' of {text}, else "
        "'completion'",
        choices=("", "completion", "assistant", "all"),
    ),
    "data.join": Key("separate", "or 'joint'", choices=("separate", "joint")),
    "data.max_tokens": Key(512, "of a prompt with one response", (2, 2**22, True)),
    "data.max_prompt_tokens": Key(256, "of a prompt that is too long", COUNT),
    "data.truncate_prompt": Key(
        "keep_end", "or 'keep_start'", choices=("keep_end", "keep_start")
    ),
    "data.truncate_response": Key(
        "rest",
        "or 'fixed': max_tokens − max_prompt_tokens",
        choices=("rest", "fixed"),
    ),
    "data.cache_dir": Key("", "where tokens are kept; '' = beside the run folder"),
    "data.seed": Key(
        -1, "of the order and making of data.train; -1 = seed", (-1, 2**32, True)
    ),
    "data.labels": Key(
        "", "of 'sentiment': 'deterministic' (default), 'bradley_terry'"
    ),
    "data.on_bad_row": Key("error", "or 'drop'", choices=("error", "drop")),
    "data.disjoint": Key(
        False,
        "True: rows of data.train whose prompt stands in data.eval are left out; with "
        "data.eval=FILE[:10%] of the same file, a split by prompts",
    ),
    "data.shuffle": Key(True, "in another order each epoch; False = as they stand"),
    "data.layout": Key(
        "prefix_shared",
        "or 'packed', 'padded'",
        choices=("padded", "packed", "prefix_shared"),
    ),
    "data.row_tokens": Key(
        0, "tokens of a row; 0 = chosen from the lengths", (0, 2**22, True)
    ),
    "data.row_shapes": Key(
        0, "numbers of rows to compile; 0 = those worth it, up to 6", NOT_NEGATIVE
    ),
    "batch.pairs": Key(64, "of an optimizer step, over the whole mesh", COUNT),
    "batch.microbatches": Key(
        0,
        "parts of a step, one after the other; 0 = chosen so that activations stay "
        "small, and kept in config.json",
        NOT_NEGATIVE,
    ),
}
