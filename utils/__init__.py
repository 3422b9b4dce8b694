"""What every layer stands on: settings that know their flag, registries, the runtime, and run folders."""

from utils.files import digest_of, git_commit, sha256, write_atomic, write_json
from utils.readers import UNREADABLE, load_arrays, open_regular, read_json, read_whole_numbers, reading, reason
from utils.runs import SCHEMA, Run, RunConfig, Saved, find_runs, read_record
from utils.runtime import Mask, Runtime, RuntimeConfig
from utils.settings import Config, Registry, did_you_mean, flag_words, hp
from utils.words import BadInput, CannotWrite, Damaged, Mended, Unfinished, as_line, say, shown

__all__ = [
    "SCHEMA", "UNREADABLE", "BadInput", "CannotWrite", "Config", "Damaged", "Mask", "Mended", "Registry", "Run", "RunConfig",
    "Runtime", "RuntimeConfig", "Saved", "Unfinished", "as_line", "did_you_mean", "digest_of", "find_runs", "flag_words",
    "git_commit", "hp", "load_arrays", "open_regular", "read_json", "read_record", "read_whole_numbers", "reading", "reason",
    "say", "sha256", "shown", "write_atomic", "write_json",
]
