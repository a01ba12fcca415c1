"""Stands in for the process of a job: fast, and told by the variant's name what to do."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from helpers.record_examples import fields
from zoo.bench.job import read_order, write_failure
from zoo.records.record import parse_record, write_record

FOLDER = Path(sys.argv[1])
ORDER = read_order(FOLDER)


def write_result() -> None:
    job = ORDER.job
    record = fields(
        model=job.model,
        dataset=job.data,
        split=job.split,
        recipe=job.recipe,
        recipe_hash=job.recipe_hash,
        seed=job.seed,
        encoder_init="random",
        encoder_weights=None,
        data_hash=ORDER.data_hash,
    )
    write_record(parse_record(record, "the fake job"), ORDER.results)


def note(what: str) -> None:
    variables = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    values = {name: os.environ.get(name) for name in variables}
    line = json.dumps({"what": what, "at": time.monotonic(), **values})
    with (FOLDER / "notes").open("a") as stream:
        stream.write(line + "\n")


if ORDER.job.variant == "waits":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    try:
        note("began")
        time.sleep(60)
    except KeyboardInterrupt:
        note("interrupted")
        sys.exit(130)
note("began")
if ORDER.job.variant == "refused":
    write_failure(FOLDER, 2, "There is no such thing:\n  - here")
    sys.exit(2)
if ORDER.job.variant == "dies":
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
together = int(os.environ.get("FAKE_TOGETHER", "0"))
while len(list(FOLDER.parent.glob("*/notes"))) < together:
    time.sleep(0.05)
time.sleep(0.2)
write_result()
note("ended")
