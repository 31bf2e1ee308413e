"""What is compared, read from what the configurations of trials differ in."""

from sweep_cases import entry

from dpo_jax.report.arms import arms_of


def placed(entries):
    arms = arms_of(entries)
    return arms, [arms.places[e.name] for e in entries if e.name in arms.places]


def test_a_sweep_over_beta_compares_betas_at_tuned_lrs():
    entries = [
        entry(
            "out", f"{beta}-{lr}-{seed}", loss__beta=beta, optimizer__lr=lr, seed=seed
        )
        for beta in (0.05, 0.1)
        for lr in (1e-6, 1e-5)
        for seed in (0, 1)
    ]
    arms, places = placed(entries)
    assert [p.method for p in places] == ["beta=0.05"] * 4 + ["beta=0.1"] * 4
    assert places[0].setting == (("optimizer.lr", 1e-6),)
    assert [p.seed for p in places[:2]] == [(0, -1), (1, -1)]
    assert [p.usual for p in places[::2]] == [True, False, True, False]  # lr 1e-6
    assert arms.base == "beta=0.1"  # the configuration's
    assert arms.same_pairs and arms.stages == []


def test_a_sweep_over_losses_compares_them_at_strengths_of_their_own():
    entries = [
        entry("out", "a", loss__name="dpo", loss__beta=0.1),
        entry("out", "b", loss__name="dpo", loss__beta=0.5),
        entry("out", "c", loss__name="unlikelihood", loss__unlikelihood_alpha=0.1),
        entry("out", "d", loss__name="unlikelihood", loss__unlikelihood_alpha=0.7),
        entry("out", "e", loss__name="ipo", ref__mode="none"),
    ]
    arms, places = placed(entries)
    assert [p.method for p in places] == ["dpo"] * 2 + ["unlikelihood"] * 2 + ["ipo"]
    assert [p.setting for p in places] == [
        (("loss.beta", 0.1),),
        (("loss.beta", 0.5),),
        (("loss.unlikelihood_alpha", 0.1),),
        (("loss.unlikelihood_alpha", 0.7),),
        (),
    ]
    assert arms.base == "dpo"
    assert [p.usual for p in places] == [True, False, False, False, True]


def test_an_option_of_a_users_own_loss_is_its_strength():
    """No `--config` has it: the first value that is listed counts as the default."""
    gamma = "loss__options__focal__focal_gamma"
    entries = [
        entry("out", "a", loss__beta=0.1),
        *(
            entry("out", f"{value}", loss__name="focal", losses="5d", **{gamma: value})
            for value in (2.0, 0.5)
        ),
    ]
    arms, places = placed(entries)
    assert [p.method for p in places] == ["dpo", "focal", "focal"]
    assert [p.setting for p in places] == [
        (),
        (("loss.options.focal.focal_gamma", 2.0),),
        (("loss.options.focal.focal_gamma", 0.5),),
    ]
    assert [p.usual for p in places] == [True, True, False]
    assert arms.base == "dpo"


def test_methods_are_named_by_as_few_keys_as_tell_them_apart():
    entries = [
        entry("out", "a", loss__name="dpo"),
        entry("out", "b", loss__name="dpo", loss__normalize="mean"),
        entry("out", "c", loss__name="ipo"),
    ]
    assert [p.method for p in placed(entries)[1]] == [
        "dpo, normalize=sum",
        "dpo, normalize=mean",
        "ipo, normalize=sum",
    ]


def test_lrs_and_seeds_alone_are_compared_too():
    entries = [entry("out", f"{lr}", optimizer__lr=lr) for lr in (1e-6, 1e-5)]
    arms, places = placed(entries)
    assert [p.method for p in places] == ["lr=1e-06", "lr=1e-05"]
    assert [p.setting for p in places] == [(), ()] and arms.base == "lr=1e-06"
    entries = [entry("out", f"{seed}", seed=seed) for seed in (0, 1)]
    assert [p.method for p in placed(entries)[1]] == ["all", "all"]


def test_trials_that_others_start_from_are_stages_whatever_their_seed():
    """Runs of a seed start from the export of that seed: still one method."""
    stages = [entry("out", f"sft{s}", objective="sft", seed=s) for s in (0, 1)]
    runs = [
        entry("out", f"dpo{s}", seed=s, model__path=f"out/sft{s}/export")._replace(
            needs=(f"sft{s}",)
        )
        for s in (0, 1)
    ]
    arms, places = placed([*stages, *runs])
    assert arms.stages == ["sft0", "sft1"]
    assert [p.method for p in places] == ["all", "all"]


def test_what_a_relaunch_may_change_tells_nothing_apart():
    entries = [
        entry("out", "a", eval__every_steps=5),
        entry("out", "b", mesh__fsdp=8, seed=1),
    ]
    assert [p.method for p in placed(entries)[1]] == ["all", "all"]


def test_other_data_is_no_pairing():
    entries = [entry("out", "a"), entry("out", "b", data__train="hh")]
    arms, places = placed(entries)
    assert not arms.same_pairs and places[1].method == "train=hh"
