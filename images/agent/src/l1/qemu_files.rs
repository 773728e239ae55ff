//! The files through which a QEMU is driven and observed.

/// The files of one QEMU. Each of two that run at the same time has its own.
#[derive(Clone, Copy, Debug)]
pub struct QemuFiles {
    suffix: &'static str,
}

impl QemuFiles {
    /// Those of a QEMU that runs alone, and of the source of a migration.
    pub const USUAL: Self = Self { suffix: "" };
    /// Those of the destination of a migration.
    pub const DESTINATION: Self = Self { suffix: "-destination" };

    /// The socket of its monitor.
    pub fn monitor(self) -> String {
        self.path("qmp")
    }

    /// The file that L2's events arrive in.
    pub fn events(self) -> String {
        self.path("l2-events")
    }

    /// The file that the ioctl witness writes.
    pub fn witness(self) -> String {
        self.path("witness")
    }

    /// The log of that kind, by which both the host and this machine know it.
    pub fn log(self, kind: &str) -> String {
        format!("{kind}{}", self.suffix)
    }

    /// Where this machine keeps that log.
    pub fn path(self, kind: &str) -> String {
        format!("/run/{}", self.log(kind))
    }
}
