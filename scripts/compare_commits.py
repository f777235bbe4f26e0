"""Run the same commands on two commits, and show where the answers differ: for changes that should change nothing.

    python scripts/compare_commits.py BEFORE [AFTER]

Both commits run with the libraries of this Python, each in an empty folder of its own, on one thread. Compared are exit
codes, JSON objects and training records without the fields that hold times, and the bytes of the weights.
Exits 1 if anything differs, or a command fails on both. Two minutes on an idle machine.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = {"seconds", "tokens_per_second", "versions", "started", "time"}
TEXT = "--data verse"
TINY = "--preset shakespeare-quick --model.n_layer 2 --model.n_head 2 --model.n_embd 14 --model.block_size 29"
SHORT = "--train.max_steps 13 --train.batch_size 5 --train.eval_interval 7 --train.warmup_steps 2 --seed 3 --device cpu"
RECORDS = [{"text": "Of the rose and the thorn. " * count, "stars": count} for count in range(1, 18)]

COMMANDS = {
    "train adamw": f"train {TINY} {TEXT} {SHORT} --out adamw",
    "train muon": f"train {TINY} {TEXT} {SHORT} --out muon --train.optimizer muon",
    "train accumulation": f"train {TINY} {TEXT} {SHORT} --out accumulation --train.accumulation_steps 3",
    "train dropout": f"train {TINY} {TEXT} {SHORT} --out dropout --model.dropout 0.3",
    "train bfloat16": f"train {TINY} {TEXT} {SHORT} --out bfloat16 --dtype bfloat16",
    **{
        f"train documents {batching}": f"train {TINY} {SHORT} --data records.jsonl --out {batching} "
        f"--documents.separate on --documents.batching {batching} --documents.longer cut --documents.max_length 29"
        for batching in ("padded", "packed", "packed-masked")
    },
    "train lora": f"train {SHORT} {TEXT} --init-from adamw --out lora --train.lora_rank 3 --train.lora_dropout 0.1",
    "train resume": "train --resume muon --train.max_steps 17",
    "generate sample": 'generate --model adamw "The" --max-new-tokens 9 --top-k 7 --top-p 0.9 --num-return-sequences 3',
    "generate greedy": 'generate --model adamw --strategy greedy --prompt "The" --prompt "A" --max-new-tokens 17',
    "generate beam": 'generate --model adamw --strategy beam --num-beams 4 --length-penalty 2 "The" --max-new-tokens 9',
    "generate draft": 'generate --model adamw --draft lookup "The rose and the" --max-new-tokens 40 --on-overflow crop',
    "generate bans": 'generate --model adamw --ban e --bias t -2.5 --repetition-penalty 1.3 "The" --max-new-tokens 19',
    "generate documents": 'generate --model packed "Of the" --max-new-tokens 20',
    "next": 'next --model adamw --prompt "The ro" --top 5',
    "score": 'score --model adamw "The rose" "A thorn"',
    "eval": "eval --model adamw --data verse",
    "eval documents": "eval --model padded --data records.jsonl",
    "evaluate-text": "evaluate-text texts.txt",
    "compare": 'compare --model adamw --prompt "The" --setting greedy --setting "sample top_k=3,5" --seeds 2',
    "tokenize": 'tokenize --model adamw "The rose"',
    "import": "import adamw imported",
    "export": "export adamw exported",
    "export lora": "export lora exported-lora",
    "eval exported": "eval --model exported --data verse",
    **{
        f"inspect {line.split()[0]}": f"inspect {line}"
        for line in (
            "size --model adamw --tokens 11",
            "arch --model adamw",
            'tokens --model adamw "The rose"',
            'next --model adamw "The rose" --temperature 1.5 --top-k 8',
            'attn --model adamw "The rose"',
            "heads --model adamw --length 11",
            'lens --model adamw "The rose"',
            'why --model adamw "The rose"',
            'loss --model adamw "The rose"',
            'ablate --model adamw "The rose" --part 1.0 0.mlp',
            'patch --model adamw --clean "The rose" --corrupt "The rote" --token d --against s',
            "embed near e --model adamw",
            'steps --model adamw "The" -n 5',
            'beams --model adamw "The" -n 5 --beams 3',
            "runs adamw muon",
        )
    },
}


def main() -> None:
    """Compare the two commits that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE")
    parser.add_argument("after", metavar="AFTER", nargs="?", default="HEAD")
    arguments = parser.parse_args()
    for commit in (arguments.before, arguments.after):
        known = ["git", "rev-parse", "-q", "--verify", "--end-of-options", f"{commit}^{{commit}}"]
        if subprocess.run(known, capture_output=True, check=False).returncode:
            parser.error(f"there is no commit {commit!r} here")
    with tempfile.TemporaryDirectory() as folder:
        old, new = (
            answers(commit, Path(folder, name)) for name, commit in (("a", arguments.before), ("b", arguments.after))
        )
    same = 0
    for name in COMMANDS:
        if old[name]["exit"] and new[name]["exit"]:  # nothing was compared
            sys.exit(f"{name} fails on both commits: {new[name]['error']}")
        if differences := [*differing(old[name], new[name])]:
            print(f"{name}: {len(differences)} differ\n  " + "\n  ".join(differences[:8]))
        same += not differences
    print(f"{same} of {len(COMMANDS)} commands give the same")
    sys.exit(same < len(COMMANDS))


def answers(commit: str, folder: Path) -> dict[str, Any]:
    """What every command gives on a commit."""
    tree, work = folder / "tree", folder / "work"
    subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], check=True)
    try:
        work.mkdir()
        (work / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        (work / "texts.txt").write_text("Of the rose and the thorn.\n\nOf the thorn and the rose.\n")
        return {name: answer(line, tree, work) for name, line in COMMANDS.items()}
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True)


def answer(line: str, tree: Path, work: Path) -> dict[str, Any]:
    """Exit code and JSON of one command, and what it has written: losses and weights."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", *shlex.split(line), "--json"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    print(f"{tree.parent.name}: {line[:100]}: exit {done.returncode}", file=sys.stderr)
    written = {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(work.rglob("model.safetensors"))
    }
    losses = {
        str(path.relative_to(work)): [timeless(json.loads(row)) for row in path.read_text().splitlines()]
        for path in sorted(work.rglob("metrics.jsonl"))
    }
    shown = timeless(json.loads(done.stdout)) if done.stdout.startswith("{") else done.stdout
    complaint = done.stderr if done.returncode else ""
    return {"exit": done.returncode, "json": shown, "error": complaint, "weights": written, "records": losses}


def timeless(value: Any) -> Any:
    """JSON without times, which no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differing(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Lines that say where two answers differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{where}.{key} is only {'before' if key in old else 'after'}"
            else:
                yield from differing(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differing(one, other, f"{where}[{number}]")
    elif old != new:
        yield f"{where}: {str(old)[:160]!r} -> {str(new)[:160]!r}"


if __name__ == "__main__":
    main()
