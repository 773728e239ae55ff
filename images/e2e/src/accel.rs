//! How L1 runs: with KVM if KVM truly works here, else emulated.

use std::fmt;

/// What executes L1's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator, which emulates SVM: L2 runs on KVM either way. The text says why.
    Tcg(&'static str),
}

impl Accel {
    /// Arguments for QEMU.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without ERMS and FSRM kernels clear pages by words instead of bytes, which the
            // translator does eight times as fast.
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
