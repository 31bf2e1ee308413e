"""The format of Anthropic's helpful and harmless dialogues.

A row has two whole transcripts, `chosen` and `rejected`, that share their beginning.
Source: arXiv:2204.05862; the rule for the prompt is that of the DPO paper's code.
"""

from dpo_jax.data.sources.files import BadRow, Fields

ASSISTANT = "\n\nAssistant:"


def split_transcripts(fields: Fields) -> Fields:
    r"""Splits two transcripts into a prompt and two responses.

    The prompt is `chosen` up to and including its last `\n\nAssistant:`; responses
    keep their leading space.

    Args:
      fields: columns `chosen` and `rejected`; others are kept. Columns that are
        missing or no strings are left for the check of rows to name.

    Returns:
      The columns with `prompt` added.

    Raises:
      BadRow: `mismatched`, if `rejected` does not start with the prompt or `chosen`
        has no assistant turn; `wrong format`, if there is another `prompt` or
        a chat.
    """
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    if isinstance(chosen, list) or isinstance(rejected, list):
        detail = "messages are no transcripts of data.format='hh'; set data.format=''"
        raise BadRow("wrong format", detail)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return fields
    if "prompt" in fields:
        raise BadRow(
            "wrong format",
            "column 'prompt' is present, but data.format='hh' takes whole transcripts; "
            "set data.format=''",
        )
    end = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    if end < len(ASSISTANT):
        raise BadRow("mismatched", f"column 'chosen' has no {ASSISTANT!r}")
    if not rejected.startswith(chosen[:end]):
        raise BadRow(
            "mismatched", "column 'rejected' does not start with the prompt of 'chosen'"
        )
    return fields | {
        "prompt": chosen[:end],
        "chosen": chosen[end:],
        "rejected": rejected[end:],
    }
