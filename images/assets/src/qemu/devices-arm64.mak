# The devices of an arm64 test host (L0). It runs no QEMU under test.
CONFIG_ARM_VIRT=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_EDU=y
