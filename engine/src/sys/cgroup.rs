//! The CPU quota of this process's cgroup (version 2).

use std::path::Path;

use super::proc;

/// The number of CPUs that the quotas of this process's cgroup and of those above it allow, rounded down but at least
/// 1; `None` if there is no quota or none can be read.
///
/// The cgroup is that of the main thread: `/proc/self` names the process, whichever thread reads it.
pub(crate) fn cpu_quota() -> Option<usize> {
    let membership = proc::read("/proc/self/cgroup")?;
    quota_in(Path::new("/sys/fs/cgroup"), &membership)
}

/// The same for a cgroup file system at `root` and the contents of a `cgroup` file of /proc.
fn quota_in(root: &Path, membership: &str) -> Option<usize> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let groups = Path::new(own).ancestors().map(|group| root.join(group).join("cpu.max"));
    groups.filter_map(|file| quota_of(&proc::read(file.to_str()?)?)).min()
}

/// The quota in a `cpu.max` file: "max 100000", or microseconds of CPU time in each period: "150000 100000".
pub(super) fn quota_of(text: &str) -> Option<usize> {
    let (time, period) = text.trim().split_once(' ')?;
    let cpus = time.parse::<usize>().ok()?.checked_div(period.parse().ok()?)?;
    Some(cpus.max(1))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_quota_is_rounded_down_to_whole_cpus() {
        let quotas = ["max 100000\n", "150000 100000\n", "50000 100000", "400000 100000", "x 1", "1 0", ""];
        assert_eq!(quotas.map(quota_of), [None, Some(1), Some(1), Some(4), None, None, None]);
    }

    #[test]
    fn the_smallest_quota_on_the_way_to_the_root_counts() {
        let root = std::env::temp_dir().join(format!("vfio-fast-cgroup-{}", std::process::id()));
        let group = root.join("machine/emulator");
        fs::create_dir_all(&group).unwrap();
        let quota = |membership| quota_in(&root, membership);
        let (inside, outside) = ("4:memory:/x\n0::/machine/emulator\n", "0::/\n");
        assert_eq!((quota(inside), quota(outside)), (None, None));
        fs::write(root.join("machine/cpu.max"), "200000 100000\n").unwrap();
        fs::write(group.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!((quota(inside), quota(outside), quota("4:cpu:/\n")), (Some(2), None, None));
        fs::write(root.join("cpu.max"), "100000 100000\n").unwrap();
        assert_eq!((quota(inside), quota(outside)), (Some(1), Some(1)));
        fs::remove_dir_all(&root).unwrap();
    }
}
