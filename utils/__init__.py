"""What every layer stands on: settings that know their flag, registries, the runtime, and run folders."""

from utils.files import (
    append,
    digest_of,
    git_commit,
    make_folder,
    read_arrays,
    sha256,
    sweep,
    write_atomic,
    write_json,
    write_tensors,
)
from utils.kept import Kept
from utils.programs import program
from utils.ranks import ALONE, Lost, Ranks
from utils.readers import UNREADABLE, load_arrays, open_regular, read_json, read_whole_numbers, reading, reason
from utils.records import (
    SCHEMA,
    Saved,
    as_kept,
    damage,
    files_of,
    find_runs,
    misfit,
    read_record,
    require,
    run_of,
    survey,
    unusable,
)
from utils.runs import Run, RunConfig
from utils.runtime import Mask, Runtime, RuntimeConfig
from utils.settings import Config, Registry, did_you_mean, flag_words, hp
from utils.words import BadInput, CannotWrite, Damaged, Mended, Unfinished, as_line, put, say, shown

__all__ = [
    "ALONE", "SCHEMA", "UNREADABLE", "BadInput", "CannotWrite", "Config", "Damaged", "Kept", "Lost", "Mask", "Mended",
    "Ranks", "Registry", "Run", "RunConfig", "Runtime", "RuntimeConfig", "Saved", "Unfinished", "append", "as_kept", "as_line",
    "damage", "did_you_mean", "digest_of", "files_of", "find_runs", "flag_words", "git_commit", "hp", "load_arrays",
    "make_folder", "misfit", "open_regular", "program", "put", "read_arrays", "read_json", "read_record", "read_whole_numbers",
    "reading", "reason", "require", "run_of", "say", "sha256", "shown", "survey", "sweep", "unusable", "write_atomic",
    "write_json", "write_tensors",
]
