"""`python -m sdfp.main`, with few photo crops, for test_resume.py.

DIE_AT="before SAVE" or "after SAVE" kills the process around the moment when a save whose path ends
so gets its name; "asked SAVE" sends it SIGTERM then; "slow SAVE" takes 5 s more. TEACHERS=FILE
takes down the digests of the frozen teachers around each stage.
"""

import json
import os
import signal
import time
from pathlib import Path

from sdfp import checkpoint, main, stages
from sdfp.data import digits

digits.CROPS = 200
when, _, name = os.environ.get("DIE_AT", "never").partition(" ")


def put_in_place(temporary, directory, put=checkpoint._put_in_place):
    here = name and str(directory).endswith(name)
    if here and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    if here and when == "slow":
        time.sleep(5)
    put(temporary, directory)
    if here and when in ("after", "asked"):
        os.kill(os.getpid(), signal.SIGTERM if when == "asked" else signal.SIGKILL)


def run_stage(stage, place, probe, run=stages.run_stage):
    before = checkpoint.digest(stage.frozen)
    outcome = run(stage, place, probe)
    teachers[stage.name] = [before, checkpoint.digest(stage.frozen)]
    return outcome


teachers: dict = {}
checkpoint._put_in_place = put_in_place
stages.run_stage = run_stage
try:
    main.run()
finally:
    if "TEACHERS" in os.environ:
        Path(os.environ["TEACHERS"]).write_text(json.dumps(teachers))
