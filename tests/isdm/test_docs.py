"""docs/isdm.md: the converted config is the one that stands beside its original."""

import json
import re
from pathlib import Path

from steelgen.config.base import parse_config
from steelgen.config.isdm import IsdmConfig
from steelgen.config.train import TrainConfig
from steelgen.isdm.config import convert_isdm_config

TEXT = (Path(__file__).parents[2] / "docs/isdm.md").read_text()


def test_the_config_beside_its_original():
    old, new = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
    converted = parse_config(convert_isdm_config(old, "train", "docs").config, TrainConfig)
    assert parse_config(new, TrainConfig) == converted


def test_every_key_stands_in_the_table():
    table = TEXT[TEXT.index("| ISDM |") : TEXT.index("## The same numbers")]
    keys = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert set(IsdmConfig.model_fields) <= set(re.findall(r"\w+", keys))
