"""JobSets: what they say, what their policy does, and what is called to submit them."""

import json
import re
import shlex

import pytest
import yaml
from launch_cases import chain, finish, shim

from dpo_jax.errors import ConfigError, SweepError
from dpo_jax.launch import gke, processes
from dpo_jax.launch.job import Here, Job, tasks

OPTIONS = gke.Options(
    image="europe-docker.pkg.dev/p/r/dpo:1",
    queue="multislice-queue",
    accelerator="tpu-v6e-slice",
    topology="4x4",
)
NAME = r"[a-z]([a-z0-9-]*[a-z0-9])?"


@pytest.fixture
def job(tmp_path):
    flags = ("--failures=2",)
    return Job("beta", "s.py:a b", "gs://bucket/beta", flags, chain(tmp_path), {})


def manifests(job, options=OPTIONS):
    return list(yaml.safe_load_all(gke.render(job, options)))


def end_of(manifest, code=None, disrupted=False):
    """Follows a pod's end through the policy of the Job, then that of the JobSet."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert spec["backoffLimit"] == 0
    matched = [
        rule
        for rule in spec["podFailurePolicy"]["rules"]
        if ("onPodConditions" in rule and disrupted)
        or ("onExitCodes" in rule and code in rule["onExitCodes"]["values"])
    ]
    reason = "PodFailurePolicy" if matched else "BackoffLimitExceeded"
    policy = manifest["spec"]["failurePolicy"]
    rules = policy["rules"]
    actions = [r["action"] for r in rules if reason in r["onJobFailureReasons"]]
    action = (actions or ["RestartJobSet"])[0]
    free = action == "RestartJobSetAndIgnoreMaxRestarts"
    return "again" if free or policy["maxRestarts"] > 0 else "failed"


def test_preemption_and_lost_hosts_restart_for_free_and_faults_of_a_trial_end_it(job):
    """FAULTS: 71, 75, 124, 137 and 143, a host taken away, and 8; 2-7, 9, 70 stop."""
    manifest = manifests(job)[0]
    again = [8, 71, 75, 76, 124, 137, 143]
    ends = {code: end_of(manifest, code) for code in again}
    assert ends == dict.fromkeys(again, "again")
    stops = [1, 2, 3, 4, 5, 6, 7, 9, 70, 139]
    ends = {code: end_of(manifest, code) for code in stops}
    assert ends == dict.fromkeys(stops, "failed")
    for code in (None, 1, 137):  # evicted, drained, preempted by Kueue
        assert end_of(manifest, code, disrupted=True) == "again"


def test_a_slice_has_a_pod_a_host_and_each_knows_its_place(job):
    spec = manifests(job)[1]["spec"]
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    slices = spec["replicatedJobs"][0]["template"]["spec"]
    assert slices["parallelism"] == slices["completions"] == 4
    assert slices["completionMode"] == "Indexed"
    pod = slices["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    line = container["command"] + container["args"]
    assert line[:4] == ["python", "-m", "dpo_jax", "sweep"]  # no shell: nothing is lost
    assert line[4:] == [
        *("s.py:a b", "--out=gs://bucket/beta", "--worker", "--only=one"),
        *("--failures=2", "--hosts=4", "--host_index=$(HOST_INDEX)"),
    ]
    assert container["env"][0]["name"] == "HOST_INDEX"


def test_a_trial_is_a_jobset_in_the_queue_and_what_is_done_is_none(job):
    found = manifests(job)
    assert [m["metadata"]["annotations"]["dpo-jax/trial"] for m in found] == [
        *("base", "one", "two", "last")
    ]
    for manifest in found:
        labels = manifest["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "multislice-queue"
    finish(job.trials[0])
    assert len(manifests(job)) == 3
    workers = manifests(job._replace(workers=2))
    assert len(workers) == 2 and "--only" not in str(workers)


def test_names_are_short_and_no_others(job, tmp_path):
    """At most 28 of a-z, 0-9 and -; the same each time; of another folder, another."""
    trials = [
        job.trials[0]._replace(name=name)
        for name in ("A" * 100, "A" * 99, "beta=0.1", "Beta=0_1", "0.5", "+")
    ]
    made = [t.name for t in tasks(job._replace(trials=trials))]
    assert len({*made}) == 6 and max(map(len, made)) <= 28
    assert all(re.fullmatch(NAME, name) for name in made), made
    assert made == [t.name for t in tasks(job._replace(trials=trials[::-1]))][::-1]
    others = tasks(job._replace(trials=trials, out="gs://bucket/other"))
    assert not {*made} & {t.name for t in others}


def test_manifests_fit_the_schema_of_jobsets(job, shared):
    """Closed: a key that the resource does not have is a fault."""
    jsonschema = pytest.importorskip("jsonschema")
    text = (shared / "jobset" / "jobset-v1alpha2.schema.json").read_text()
    schema = json.loads(text)
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    spot = OPTIONS._replace(spot="true", service_account="sweeps", env="A=1,B=x=y")
    for manifest in [*manifests(job), *manifests(job, spot)]:
        jsonschema.validate(manifest, schema)
    broken = manifests(job)[0]
    broken["spec"]["failurePolicy"]["rule"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def close(schema):
    """Refuses keys that a schema does not list."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            close(value)
    elif isinstance(schema, list):
        for value in schema:
            close(value)


def test_the_line_of_xpk_says_the_same(job):
    printed = gke.render(job, OPTIONS)
    (line,) = [x for x in printed.splitlines() if "xpk" in x and "--only=one" in x]
    words = shlex.split(line.removeprefix("# "))
    assert words[:3] == ["xpk", "workload", "create"]
    flags = dict(word.split("=", 1) for word in words[3:])
    assert flags["--tpu-type"] == "v6e-16" and flags["--num-slices"] == "1"
    assert flags["--restart-on-exit-codes"] == "8,71,75,76,124,137,143"
    assert "'s.py:a b'" in flags["--command"]
    assert flags["--command"].endswith("--host_index=$JOB_COMPLETION_INDEX")
    v4 = OPTIONS._replace(accelerator="tpu-v4-podslice", topology="2x2x4")
    assert "--tpu-type=v4-32" in gke.render(job, v4)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image": "", "queue": ""}, "needs --gke_image, --gke_queue"),
        ({"topology": "4by4"}, "--gke_topology='4by4'"),
        ({"accelerator": "v6e"}, "--gke_accelerator='v6e'"),
        ({"chips": 3}, "--gke_chips=3 does not divide the 16 chips"),
        ({"env": "A"}, "--gke_env='A' is not NAME=VALUE"),
    ],
)
def test_options_that_make_no_sense_are_refused(job, change, said):
    with pytest.raises(ConfigError, match=said):
        gke.render(job, OPTIONS._replace(**change))


def test_pods_share_no_disk(job):
    with pytest.raises(ConfigError, match="--out=/home/me: pods share no disk"):
        gke.render(job._replace(out="/home/me"), OPTIONS)


KUBECTL = """
case "$*" in
*get*) cat "$HERE/cluster.json" ;;
*apply*) echo "apply: $(grep -m1 '^  name:' | cut -c9-)" >> "$HERE/calls" ;;
*) echo "$*" >> "$HERE/calls" ;;
esac
"""


def test_submits_what_is_not_there_and_what_has_ended(job, tmp_path, monkeypatch):
    """Run twice, it submits nothing twice; the trial that failed is made anew."""
    shim(tmp_path, monkeypatch, "kubectl", KUBECTL)
    base, one, two, last = (task.name for task in tasks(job))
    cluster = [
        {"metadata": {"name": one}, "status": {"terminalState": "Failed"}},
        {"metadata": {"name": two}, "status": {}},
    ]
    (tmp_path / "cluster.json").write_text(json.dumps({"items": cluster}))
    told = []
    gke.launch(job, OPTIONS, Here(processes.Stop(), told.append, None))
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"apply: {base}",
        f"--namespace=default delete jobset {one} --wait=true",
        f"apply: {one}",
        f"apply: {last}",
    ]
    assert told[2] == f"two: JobSet {two} is there already"


def test_a_cluster_that_refuses_is_told(job, tmp_path, monkeypatch):
    shim(tmp_path, monkeypatch, "kubectl", "echo 'no such namespace' >&2; exit 3")
    here = Here(processes.Stop(), print, None)
    with pytest.raises(SweepError, match="ended with 3: no such namespace"):
        gke.launch(job, OPTIONS, here)
