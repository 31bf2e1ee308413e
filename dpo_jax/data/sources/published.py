r"""The published data sets that go by name: one row of a table each.

A row says what `mapping.ColumnMap` says, where the set lives, and which of its faults
are dropped and counted instead of refused. To add a set, add a row, and its look-alike
to `tests/data/test_published.py`.
"""

from typing import NamedTuple

from dpo_jax import markdown
from dpo_jax.data.sources.mapping import DROPS, ColumnMap

USUAL = ",".join(DROPS)
BOTH = {"train": "train", "eval": "test"}
VALIDATED = {"train": "train", "eval": "validation"}
TRAIN = {"train": "train", "eval": ""}
AS_DIALOGUE = "\n\nHuman: {history}\n\nAssistant:"
TLDR = (
    "SUBREDDIT: r/{info.subreddit}\n\nTITLE: {info.title}\n\nPOST: {info.post:fold}"
    "\n\nTL;DR:||TITLE: {info.title}\n\n{info.article:fold}\n\nTL;DR:"
)
WHOLE_CHATS = ColumnMap(prompt="implicit", drop=USUAL)
RATED_CHATS = WHOLE_CHATS._replace(
    score_chosen="chosen_rating", score_rejected="rejected_rating"
)
SAFE = ColumnMap(
    responses="response_0,response_1",
    pair="index:better_response_id",
    chat="wrap",
    drop=USUAL,
)
OF_GITHUB = "https://openaipublic.blob.core.windows.net/lm-human-preferences/labels"


class Published(NamedTuple):
    """A published data set.

    Attributes:
      about: what it holds, its quirks, and the source of the recipe.
      hub: its id on the hub; '' = it is on none.
      columns: how its rows become ours.
      splits: its own name of `train` and `eval`; '' = it has none.
      config: the hub's configuration, or the subfolder of a copy; '' = the default.
      format: of `records.FORMATS`.
      holds: `pairs` serves all objectives; else the kind of row that it has alone.
      file: where it is read from, if it is on no hub.
    """

    about: str
    hub: str = ""
    columns: ColumnMap = ColumnMap(drop=USUAL)
    splits: dict[str, str] = BOTH
    config: str = ""
    format: str = ""
    holds: str = "pairs"
    file: str = ""


PUBLISHED: dict[str, Published] = {
    "hh": Published(
        "helpful and harmless dialogues as transcripts; the prompt ends at the last "
        "'Assistant:' of chosen (arXiv:2305.18290's code)",
        "Anthropic/hh-rlhf",
        format="hh",
    ),
    "shp": Published(
        "Reddit answers; score ratio ≥ 2 as in arXiv:2305.18290's code, the first 5 "
        "pairs of a prompt as its card advises; labels=1 prefers A",
        "stanfordnlp/SHP",
        ColumnMap(
            prompt=AS_DIALOGUE,
            responses="human_ref_B:spaced,human_ref_A:spaced",
            scores="score_B,score_A",
            pair="index:labels",
            keep="score_chosen>=2*score_rejected",
            drop=USUAL,
            pairs_per_prompt=5,
        ),
    ),
    "tldr": Published(
        "comparisons of summaries of Reddit's posts, or of news in the cnndm batches; "
        "prompts of TRL's tldr_preference.py",
        "openai/summarize_from_feedback",
        ColumnMap(
            prompt=TLDR,
            responses="summaries[].text:spaced",
            pair="index:choice",
            drop=USUAL,
        ),
        VALIDATED,
        config="comparisons",
    ),
    "imdb": Published(
        "film reviews, plain text for SFT; breaks are blanks, as arXiv:2305.18290's "
        "replications have them",
        "stanfordnlp/imdb",
        ColumnMap(text="text:breaks", drop=USUAL),
        holds="completions",
    ),
    "cnn_dailymail": Published(
        "news articles with their highlights, version 3.0.0: for evaluation out of "
        "TL;DR's domain (arXiv:2305.18290, table 1); the prompt ends as TL;DR's",
        "abisee/cnn_dailymail",
        ColumnMap(
            prompt="{article:fold}\n\nTL;DR:",
            completion="highlights:spaced",
            drop=USUAL,
        ),
        BOTH,
        config="3.0.0",
        holds="completions",
    ),
    "ultrafeedback": Published(
        "best of 4 by GPT-4's score against a random other; prompt repeats the chats' "
        "first turn",
        "HuggingFaceH4/ultrafeedback_binarized",
        WHOLE_CHATS,
        {"train": "train_prefs", "eval": "test_prefs"},
    ),
    "ultrafeedback_trl": Published(
        "the same as whole chats, without prompt",
        "trl-lib/ultrafeedback_binarized",
        WHOLE_CHATS,
    ),
    "ultrafeedback_llamafactory": Published(
        "the same as strings",
        "llamafactory/ultrafeedback_binarized",
        ColumnMap(prompt="instruction", chat="wrap", drop=USUAL),
    ),
    "ultrafeedback_armorm": Published(
        "best and worst of 5 by ArmoRM, sampled from Llama-3-8B-Instruct (SimPO)",
        "princeton-nlp/llama3-ultrafeedback-armorm",
        WHOLE_CHATS._replace(
            score_chosen="all_rm_scores:max", score_rejected="all_rm_scores:min"
        ),
    ),
    "tulu3_8b": Published(
        "preferences of Tulu 3; prompt is the last user text only",
        "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        WHOLE_CHATS,
        TRAIN,
    ),
    "tulu3_405b": Published(
        "likewise, rated",
        "allenai/llama-3.1-tulu-3-405b-preference-mixture",
        RATED_CHATS,
        TRAIN,
    ),
    "tulu3_personas_if": Published(
        "instructions with constraints, one relaxed for rejected; a column is spelt "
        "chonsen_model",
        "allenai/tulu-3-pref-personas-instruction-following",
        WHOLE_CHATS,
        TRAIN,
    ),
    "helpsteer3": Published(
        "a preference from −3 (response1) to 3, its size the margin; 0 = tie",
        "nvidia/HelpSteer3",
        ColumnMap(
            prompt="context",
            responses="response1,response2",
            pair="sign:overall_preference",
            drop=USUAL,
        ),
        VALIDATED,
        config="preference",
    ),
    "skywork": Published(
        "pairs for reward models, v0.2",
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        WHOLE_CHATS,
        TRAIN,
    ),
    "safe_rlhf": Published(
        "the more helpful of two responses",
        "PKU-Alignment/PKU-SafeRLHF",
        SAFE,
    ),
    "safe_rlhf_safer": Published(
        "the same by the axis of safety",
        "PKU-Alignment/PKU-SafeRLHF",
        SAFE._replace(pair="index:safer_response_id"),
    ),
    "nectar": Published(
        "seven answers ranked by GPT-4: a ranking for objective=ranking, else pairs; "
        "the blank behind 'Assistant:' begins the answers",
        "berkeley-nest/Nectar",
        ColumnMap(
            prompt="prompt:rstrip",
            responses="answers[].answer:spaced",
            pair="rank:answers[].rank",
            drop=USUAL,
        ),
        TRAIN,
    ),
    "orca": Published(
        "GPT-4 or 3.5 against Llama-2; system is often empty",
        "Intel/orca_dpo_pairs",
        ColumnMap(prompt="question", chat="wrap", drop=USUAL),
        TRAIN,
    ),
    "orca_distilabel": Published(
        "the same judged anew, without ties, low scores and GSM8K, as its card advises",
        "argilla/distilabel-intel-orca-dpo-pairs",
        ColumnMap(
            prompt="input",
            chat="wrap",
            keep="status!=tie,chosen_score>=8,in_gsm8k_train=false",
            drop=USUAL,
        ),
        TRAIN,
    ),
    "dpo_mix": Published(
        "chats of several turns, rated; a mix of 7k",
        "argilla/dpo-mix-7k",
        RATED_CHATS,
    ),
    "kto_mix": Published(
        "single responses, desirable or not, for objective=unpaired; completion may "
        "hold the whole chat",
        "argilla/kto-mix-15k",
        ColumnMap(prompt="implicit", chat="wrap", drop=USUAL),
        holds="singles",
    ),
    "lm_human_sentiment": Published(
        "ids of GPT-2's tokenizer, which it needs; the best of 4 against the others",
        columns=ColumnMap(
            prompt="query:ids",
            responses="sample0:ids,sample1:ids,sample2:ids,sample3:ids",
            pair="index:best",
            drop=USUAL,
        ),
        splits=TRAIN,
        file=f"{OF_GITHUB}/sentiment/offline_5k.json",
    ),
    "reward_bench_2": Published(
        "for evaluation: every right answer against every wrong one; subset Ties has a "
        "rule of its own and is left out",
        "allenai/reward-bench-2",
        ColumnMap(pair="each", chat="wrap", keep="subset!=Ties", drop=USUAL),
        {"train": "", "eval": "test"},
    ),
}
ALIKE: dict[str, str] = {  # other hub ids with the rows of a set -> its name
    "princeton-nlp/gemma2-ultrafeedback-armorm": "ultrafeedback_armorm",
    "allenai/llama-3.1-tulu-3-70b-preference-mixture": "tulu3_8b",
    "PKU-Alignment/PKU-SafeRLHF-single-dimension": "safe_rlhf",
    "trl-lib/kto-mix-14k": "kto_mix",
}
REFUSED: dict[str, str] = {
    "Skywork/Skywork-Reward-Preference-80K-v0.1": (
        "is contaminated: prompts of RewardBench are among its own, by its authors' "
        "card; take Skywork/Skywork-Reward-Preference-80K-v0.2"
    ),
}


def name_of(source: str) -> str:
    """Returns the name in `PUBLISHED` of a name or a hub id; '' if there is none."""
    if source in PUBLISHED or source in ALIKE:
        return ALIKE.get(source, source)
    named = (name for name, row in PUBLISHED.items() if row.hub and row.hub == source)
    return next(named, "")


def as_markdown() -> str:
    """Writes the table as the documentation has it."""
    rows = []
    for name, row in PUBLISHED.items():
        hub = (
            f"`{row.hub}`"
            if row.hub
            else f"[{row.file.rpartition('/')[2]}]({row.file})"
        )
        alike = [f"`{other}`" for other, its in ALIKE.items() if its == name]
        rows.append((f"`{name}`", ", ".join([hub, *alike]), row.about))
    return markdown.table(("name", "on the hub", "what it holds"), rows)
