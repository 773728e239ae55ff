//! The accelerator L1 runs with: KVM if a probe shows that it works, TCG otherwise.

use std::fmt;

use vfio_fast_protocol::host::Host;

/// The accelerator of L0's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    /// QEMU's translator, which emulates SVM so that L2 can use KVM. The text gives the reason for the fallback.
    Tcg(&'static str),
}

impl Accel {
    /// The accelerator for that host.
    pub fn of(self, host: Host) -> Self {
        match host.is_arm64() {
            true => Accel::Tcg("this machine's processors are not arm64"),
            false => self,
        }
    }

    /// Command-line arguments for QEMU.
    pub fn arguments(self, host: Host) -> [&'static str; 4] {
        match self.of(host) {
            // A server's processor with pages of 4, 16 and 64 KiB, without what is slow to emulate.
            Accel::Tcg(_) if host.is_arm64() => ["-accel", "tcg,thread=multi", "-cpu", "neoverse-n1"],
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without ERMS and FSRM, kernels clear pages in words instead of bytes, which TCG executes eight times as
            // fast.
            Accel::Tcg(_) => ["-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off"],
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accel::Kvm => f.write_str("KVM (a kernel reached user space with it)"),
            Accel::Tcg(why) => write!(f, "TCG ({why})"),
        }
    }
}
