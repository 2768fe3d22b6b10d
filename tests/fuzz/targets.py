"""All files that are fuzzed, by name."""

from collections.abc import Mapping

from tests.fuzz import exports, pipelines, runs, shards, tars
from tests.fuzz.target import Target

TARGETS: Mapping[str, Target] = runs.TARGETS | shards.TARGETS | tars.TARGETS | exports.TARGETS | pipelines.TARGETS
