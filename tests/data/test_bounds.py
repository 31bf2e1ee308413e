"""Chat templates that take too long, too much or say too much are refused at once."""

import resource
import signal
import threading
import time

import pytest

from dpo_jax.data import bounds, encode, templates
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ModelError

CHAT = [{"role": "user", "content": "the movie"}]
ROW = RawRow(CHAT, ([{"role": "assistant", "content": "was good"}],), where="a.jsonl:3")
DOUBLED = (
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s }}"
)
GREEDY = {
    "a gigabyte": ("{{ 'a' * 10**9 }}", "256 MiB"),
    "doubled": (DOUBLED, "256 MiB"),
    "padded": ("{{ 'x' | center(10**10) }}", "256 MiB"),
    "joined": ("{{ ['a', 'b'] | join('x' * 10**9) }}", "256 MiB"),
    "long": ("{{ 'a' * 3 * 10**6 }}", "3000000 characters of a chat of"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return sentiment.tokenizer()


@pytest.mark.parametrize("case", GREEDY)
def test_a_template_that_takes_too_much_names_the_row(case, tokenizer):
    text, said = GREEDY[case]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ModelError, match=rf"a.jsonl:3: the chat template .*{said}"):
        encode.encode(ROW, tokenizer, join="joint", chat_template=text)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
        "{{ 10**(10**9) }}",
    ],
)
def test_a_template_that_never_ends_is_ended(text, tokenizer, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    before, since = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(ModelError, match=r"more than 0.2 s for one chat; set da"):
        templates.render(tokenizer, text, CHAT)
    assert time.monotonic() - since < 20
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_other_threads_render_as_well(tokenizer):
    """They get no signals, so there the time is not bounded."""
    said = []
    text = "{{ messages[0]['content'] }}"
    work = threading.Thread(
        target=lambda: said.append(templates.render(tokenizer, text, CHAT))
    )
    work.start()
    work.join()
    assert said == ["the movie"]
