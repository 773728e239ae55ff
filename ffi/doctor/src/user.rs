//! Who asks: the user, the capabilities and the limits that a QEMU started from here would inherit.

use std::fs;
use std::path::Path;

/// Bits of the effective capability set, from `linux/capability.h`.
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

/// The link of the user namespace that everything starts in. Its number never changes.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// The user that runs the doctor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct User {
    /// The real user, which the kernel charges for pinned memory.
    pub number: u32,
    /// The groups, the effective one first.
    pub groups: Vec<u32>,
    /// Soft and hard RLIMIT_MEMLOCK in bytes; `None` for infinity.
    pub memlock: (Option<u64>, Option<u64>),
    capabilities: u64,
    in_initial_namespace: bool,
}

impl User {
    /// Reads what /proc below `root` says about the process that reads it.
    pub fn read(root: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
        let namespace = fs::read_link(root.join("proc/self/ns/user"));
        Self::of(
            &text("status"),
            &text("limits"),
            namespace.ok().and_then(|link| link.to_str().map(Into::into)),
        )
    }

    fn of(status: &str, limits: &str, namespace: Option<String>) -> Self {
        let number = |text: &str| text.parse::<u32>().ok();
        let groups = field(status, "Gid:").split_whitespace().nth(1);
        let groups = groups.into_iter().chain(field(status, "Groups:").split_whitespace());
        // "Max locked memory         8388608              8388608              bytes"
        let mut limits = field(limits, "Max locked memory").split_whitespace();
        let mut limit = || limits.next().and_then(|text| text.parse().ok());
        Self {
            number: field(status, "Uid:").split_whitespace().next().and_then(number).unwrap_or(0),
            groups: groups.filter_map(number).collect(),
            memlock: (limit(), limit()),
            capabilities: u64::from_str_radix(field(status, "CapEff:"), 16).unwrap_or(0),
            // As the library: what cannot be read restricts nothing.
            in_initial_namespace: namespace.is_none_or(|link| link == INITIAL_USER_NAMESPACE),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 == 1
    }

    /// Whether RLIMIT_MEMLOCK does not apply. The capability counts in the initial namespace only.
    pub fn may_lock_any(&self) -> bool {
        self.in_initial_namespace && self.has(CAP_IPC_LOCK)
    }

    /// Whether the user may do what is the administrator's.
    pub fn is_admin(&self) -> bool {
        self.in_initial_namespace && self.has(CAP_SYS_ADMIN)
    }

    /// Whether a file with this mode and this owner can be opened for reading and writing.
    pub fn may_open(&self, mode: u32, owner: u32, group: u32) -> bool {
        let bits = if owner == self.number {
            mode >> 6
        } else if self.groups.contains(&group) {
            mode >> 3
        } else {
            mode
        };
        self.has(CAP_DAC_OVERRIDE) || bits & 0o6 == 0o6
    }
}

/// The value of a line that begins with `name`; empty if there is none.
pub fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

/// The value of a line "Name:   12 kB" in bytes.
pub fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name).strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Uid:\t1000\t1000\t1000\t1000\nGid:\t7\t8\t8\t8\nGroups:\t36 64055 \nCapEff:\t0000000000000000\n";
    const LIMITS: &str =
        "Max processes 1 2 processes\nMax locked memory         8388608    unlimited    bytes\n";

    #[test]
    fn the_limits_and_groups_are_those_of_the_process() {
        let user = User::of(STATUS, LIMITS, Some(INITIAL_USER_NAMESPACE.into()));
        assert_eq!((user.number, user.groups.as_slice()), (1000, [8, 36, 64055].as_slice()));
        assert_eq!(user.memlock, (Some(8 << 20), None));
        assert!(!user.may_lock_any() && !user.is_admin());
    }

    #[test]
    fn root_in_another_namespace_has_a_limit() {
        let root = STATUS.replace("0000000000000000", "000001ffffffffff");
        assert!(User::of(&root, LIMITS, Some(INITIAL_USER_NAMESPACE.into())).may_lock_any());
        assert!(User::of(&root, LIMITS, None).may_lock_any());
        assert!(!User::of(&root, LIMITS, Some("user:[4026532000]".into())).may_lock_any());
    }

    #[test]
    fn the_first_class_that_fits_decides_about_a_file() {
        let user = User::of(STATUS, LIMITS, None);
        assert!(user.may_open(0o600, 1000, 0) && user.may_open(0o060, 0, 36) && user.may_open(0o006, 0, 0));
        assert!(
            !user.may_open(0o066, 1000, 0) && !user.may_open(0o606, 0, 36) && !user.may_open(0o660, 0, 0)
        );
        assert!(!user.may_open(0o400, 1000, 0));
    }
}
