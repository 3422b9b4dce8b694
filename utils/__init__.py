"""What every layer stands on: settings that know their flag, registries, the runtime, and run folders."""

from utils.files import digest_of, git_commit, sha256, write_atomic, write_json
from utils.runs import SCHEMA, Run, RunConfig, Saved, find_runs, read_record
from utils.runtime import Mask, Runtime, RuntimeConfig
from utils.settings import Config, Registry, hp
from utils.words import BadInput, CannotWrite, say

__all__ = [
    "SCHEMA", "BadInput", "CannotWrite", "Config", "Mask", "Registry", "Run", "RunConfig", "Runtime", "RuntimeConfig", "Saved",
    "digest_of", "find_runs", "git_commit", "hp", "read_record", "say", "sha256", "write_atomic", "write_json",
]
