"""A stand-in for gcloud: queued resources in a file, their hosts as local processes.

    python stand_in_gcloud.py FOLDER compute tpus queued-resources create NAME …

FOLDER/state.json holds `resources` (name -> state), `hosts` (name -> process groups),
`calls` (what was asked), `lives` (states that each new resource passes through, one a
look, the last for ever) and `faults` (call -> list of what it says instead: an error,
or `lost` = it does as told and its answer is lost). A state that begins to run the
startup script is ACTIVE; all others end its processes. What is deleted is DELETING for
two looks.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
HOSTS = 1 if len(sys.argv) < 3 else int(os.environ.get("STAND_IN_HOSTS", 1))


def end(state, name):
    for pid in state["hosts"].pop(name, []):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run(state, name):
    """Starts the script of a slice on each of its hosts."""
    script = FOLDER / f"{name}.sh"
    ports = json.loads((FOLDER / "ports.json").read_text())
    log = open(FOLDER / f"{name}.log", "ab")
    state["hosts"][name] = [
        subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, "GCE_METADATA_HOST": f"127.0.0.1:{port}"},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        ).pid
        for port in ports
    ]


def look(state):
    """Lets a step of time pass for each resource."""
    for name, ahead in [*state["resources"].items()]:
        if len(ahead) > 1:
            ahead.pop(0)
        now = ahead[0]
        if now == "ACTIVE" and name not in state["hosts"] and state["processes"]:
            run(state, name)
        if now != "ACTIVE":
            end(state, name)
        if now == "GONE":
            del state["resources"][name]


def flag(words, name):
    return next(w.partition("=")[2] for w in words if w.startswith(f"--{name}="))


def queued(state, verb, words):
    if verb == "list":
        look(state)
        answer = [
            {"name": f"projects/p/locations/z/queuedResources/{name}",
             "state": {"state": ahead[0]}}
            for name, ahead in state["resources"].items()
        ]  # fmt: skip
        return json.dumps(answer)
    name = words[0]
    if verb == "create":
        if name in state["resources"]:
            sys.exit("ERROR: (gcloud) ALREADY_EXISTS")
        script = flag(words, "metadata-from-file").partition("=")[2]
        (FOLDER / f"{name}.sh").write_text(Path(script).read_text())
        lives = state["lives"]
        ahead = lives.pop(0) if len(lives) > 1 else list(lives[0])
        state["resources"][name] = [ahead[0], *ahead]
    elif verb == "delete":
        if name not in state["resources"]:
            sys.exit("ERROR: (gcloud) NOT_FOUND")
        end(state, name)
        state["resources"][name] = ["DELETING", "DELETING", "DELETING", "GONE"]
    return ""


def storage(words):
    verb, *paths = words
    if verb == "cat":
        path = Path(paths[0])
        return path.read_text() if path.exists() else sys.exit("ERROR: not there")
    target = Path(paths[1])
    if paths[1] == ".":
        target = Path(paths[0]).name
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(Path(paths[0]).read_bytes())
    return ""


def main(words):
    if words[0] == "storage":
        sys.stdout.write(storage(words[1:]))
        return
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = FOLDER / "state.json"
        state = json.loads(path.read_text())
        call = f"{words[2]} {words[3]}"
        if "list" not in call:
            state["calls"].append(f"{words[3]} {words[4]}")
        fault = (state["faults"].get(call) or [""]).pop(0)
        answer = ""
        if fault in ("", "lost"):
            if words[2] == "tpu-vm":
                answer = json.dumps(state["nodes"])
            else:
                answer = queued(state, words[3], words[4:])
        path.write_text(json.dumps(state))
    if fault:
        sys.exit(f"ERROR: (gcloud) {fault}")
    sys.stdout.write(answer)


if __name__ == "__main__":
    main(sys.argv[2:])
