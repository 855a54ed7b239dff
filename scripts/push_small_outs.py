"""Push the outs that DVC leaves to git, such as metrics, so that its run cache can restore a stage in another clone.

    python scripts/push_small_outs.py      # after `dvc push --run-cache`; .ci/retrain calls it

DVC keeps such outs in its local cache with the run they belong to, but `dvc push` skips them. A clone whose git does
not hold them yet would find the run in the run cache, miss these files of it, and run the stage again.
"""

from __future__ import annotations

from pathlib import Path

from dvc.repo import Repo

from moe_beyond.masking import mask_output

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Push what the local cache has of them; what it lacks was restored from git and is there for every clone.

    Raises:
        SystemExit: The remote did not take all of them.
    """
    with Repo(str(ROOT)) as repo:
        digests = {out.hash_info for out in repo.index.outs if not out.use_cache and out.hash_info}
        result = repo.cloud.push({digest for digest in digests if repo.cache.local.exists(digest.value)})
    if result.failed:
        raise SystemExit(f"error: {len(result.failed)} of {len(digests)} small outs were not pushed; run it again")


if __name__ == "__main__":
    mask_output()
    main()
