"""The memory of a GPU between two workers, on an NVML that behaves as the driver does."""

import threading

import pytest
from fake_nvml import GB, Card, Driver

from ownpod.agent.devices import Devices
from ownpod.agent.memory import Memory
from ownpod.rules.devices import parse_choice, parse_labels


class Gpu:
    """One GPU, and a worker whose memory the driver frees some readings after its end."""

    def __init__(self, labels="", **options):
        self.card = Card("GPU-a")
        self.driver = Driver(self.card)
        self.devices = Devices(
            parse_choice("auto"),
            parse_labels(labels),
            pools_of=lambda *_: (),
            nvml=self.driver,
        )
        self.memory = Memory(self.devices, poll_s=0.001, **options)
        self.memory.observe(self.devices.read())
        self.reads = 0

    def load(self, frees_after):
        self.card.used = 20 * GB
        read = self.driver.nvmlDeviceGetMemoryInfo

        def counted(handle):
            self.reads += 1
            if self.reads >= frees_after:
                self.card.used = GB
            return read(handle)

        self.driver.nvmlDeviceGetMemoryInfo = counted


def test_the_next_worker_waits_until_the_driver_has_freed_the_memory():
    gpu = Gpu()
    gpu.load(frees_after=6)
    gpu.memory.wait_until_free(["GPU-a"])
    assert gpu.card.used == GB
    assert gpu.devices.read_now(5)[0].metrics["memory_used_mb"] == 1024


def test_what_was_read_before_the_end_of_the_worker_does_not_count(caplog):
    gpu = Gpu(within_s=0.05)
    # Its last reading was of the time before the worker had loaded anything.
    gpu.card.used = 20 * GB
    gpu.memory.wait_until_free(["GPU-a"])
    assert "GPU-a: memory is in use 0.05 s after the end of a worker" in caplog.text


def test_what_was_in_use_before_the_first_worker_is_not_waited_for(caplog):
    gpu = Gpu()
    gpu.card.used = GB
    gpu.memory.wait_until_free(["GPU-a"])
    assert not caplog.text


@pytest.mark.parametrize(("labels", "ids"), [("slots=2", ["GPU-a"]), ("", ["GPU-b"]), ("", [])])
def test_devices_of_others_are_not_waited_for(labels, ids, caplog):
    gpu = Gpu(labels)
    gpu.card.used = 20 * GB
    gpu.memory.wait_until_free(ids)
    assert not caplog.text


def test_a_gpu_without_this_figure_is_not_waited_for(caplog):
    gpu = Gpu()
    gpu.card.unsupported = {"memory"}
    gpu.memory.wait_until_free(["GPU-a"])
    assert not caplog.text


def test_a_driver_that_blocks_delays_the_next_worker_no_longer_than_the_limit(caplog):
    gpu = Gpu(within_s=0.05)
    gpu.driver.block = threading.Event()
    gpu.memory.wait_until_free(["GPU-a"])
    gpu.driver.block.set()
    assert not caplog.text


def test_stand_ins_have_no_memory_to_wait_for():
    devices = Devices(parse_choice("cpu:1"), {}, pools_of=lambda *_: ())
    Memory(devices).wait_until_free(["cpu-0"])
    assert devices.read_now(0) == devices.read()
