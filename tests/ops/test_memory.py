"""Freed memory stays with the process: large arrays cost page faults once, not each time."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_large_arrays_are_made_of_the_memory_of_earlier_ones():
    code = """
import os, resource
os.environ["THP_MEM_ALLOC_ENABLE"] = "0"  # count pages of the usual size
import torch
from equipot import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_memory()
kept = [faults() for _ in range(8)][-1]  # the first find no room between what lies in memory already
print(usual, kept)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept = map(int, run.stdout.split())
    assert usual > 3 * 2**26 // 4096 * 0.9  # three times 64 MiB in pages of 4 KiB
    assert kept < 0.01 * usual
