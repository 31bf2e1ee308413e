"""Every loss as a picture: its formula, value, pull on either response, and a map.

The numbers are those of the functions that training minimises, with their own
gradients, at each loss's usual setting; nothing is trained.
"""

from dpo_jax.gallery import curves, page
from dpo_jax.losses import LossTable, find

GROUPS = {  # (record a loss takes, whether it needs a reference) -> heading
    ("pairs", True): "Pairs with a reference",
    ("pairs", False): "Pairs without a reference",
    ("singles", True): "Single responses and lists",
    ("lists", True): "Single responses and lists",
    ("scores", False): "Reward model",
}


def loss_entries(table: LossTable) -> list[page.Entry]:
    """Evaluates every loss of the table."""
    losses = {name: find(name, table) for name in table}
    return [
        page.Entry(
            name,
            GROUPS[loss.takes, loss.reference],
            loss.formula,
            loss.source,
            curves.curve(name, table),
        )
        for name, loss in losses.items()
    ]
