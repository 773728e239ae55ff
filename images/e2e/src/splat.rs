//! Finds complaints in kernel logs. A machine continues to run after a warning, oops or fault, so its test still
//! passes. Only its log shows the problem.

/// Text that never occurs in the log of a healthy run.
const SPLATS: [&str; 35] = [
    // Every WARN and BUG begins with this line. The rest differs between kernels.
    "[ cut here ]",
    "WARNING: CPU",
    "WARNING: possible",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "Oops [#",
    "Call Trace:",
    "general protection fault",
    "Unable to handle kernel",
    "unable to handle page fault",
    "Kernel panic",
    "KASAN: ",
    "UBSAN: ",
    "KFENCE: ",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "rcu_sched self-detected stall",
    "rcu_preempt self-detected stall",
    "detected stalls on CPUs",
    "detected expedited stalls on CPUs",
    "DMAR: DRHD: handling fault",
    "DMAR: [DMA",
    "fault reason 0x",
    "AMD-Vi: Event logged",
    " fault from EP ",
    SMMU_EVENT,
    "refcount_t: ",
    "list_add corruption",
    "list_del corruption",
    "Bad page state",
    "segfault at",
    "messages were lost",
    // KVM runs L2 with timers that do not work.
    "user requested TSC rate below hardware speed",
];

/// What is in each line of the driver of SMMUv3.
const SMMU_DRIVER: &str = ".smmuv3: ";
/// What it prints of an event, such as a fault. [`SMMU_WORDS`] lines follow, each with a word of it.
const SMMU_EVENT: &str = ".smmuv3: event 0x";
const SMMU_WORDS: usize = 4;
/// The word that has the address.
const SMMU_ADDRESS: usize = 2;

/// The first line of every kernel log.
const FIRST: &str = "Linux version ";

/// The complaints in a kernel log. A log that is empty or lacks its beginning is itself a complaint: a missing log
/// must not pass for a clean one.
pub fn scan(name: &str, log: &str) -> Vec<String> {
    if log.trim().is_empty() {
        return vec![format!("{name}: the log is empty")];
    }
    let mut found = Vec::new();
    if !log.lines().take(40).any(|line| line.contains(FIRST)) {
        found.push(format!("{name}: the log does not begin with `{FIRST}`"));
    }
    for (n, line) in log.lines().enumerate() {
        if SPLATS.iter().any(|splat| line.contains(splat)) {
            found.push(format!("{name}:{}: {}", n + 1, line.trim()));
        }
    }
    found
}

/// A kernel log without the reports of programs that the kernel killed because their group used too much memory, which
/// contain a call trace.
pub fn without_memory_kills(log: &str) -> String {
    let mut kept = Vec::new();
    // Where the report of the last kill begins.
    let mut report = None;
    for line in log.lines() {
        if line.contains("invoked oom-killer:") {
            report = Some(kept.len());
        }
        kept.push(line);
        if line.contains("Memory cgroup out of memory: Killed process")
            && let Some(start) = report.take()
        {
            kept.truncate(start);
        }
    }
    kept.join("\n")
}

/// First and last byte of where a scenario lets devices fault.
pub type Window = (u64, u64);

/// Those of the conformance tests, by the page of the IOMMU. These are the windows of `engine/tests/conformance/`,
/// `rest.rs` and `attacks.rs`, and what is next to the first and the last page of the address spaces of 39, 48 and 64
/// bits.
pub fn conformance_faults(page: u64) -> Vec<Window> {
    let from = |start: u64, pages| (start, start + (pages * page - 1));
    vec![
        from(0x5a00_0000, 16),
        from(0x5a_0000_0000, 4096),
        from(page, 2),
        from((1 << 39) - 4 * page, 7),
        from((1 << 48) - 4 * page, 7),
        from(u64::MAX - (4 * page - 1), 4),
    ]
}

/// What is before the address, in the messages of VT-d, AMD-Vi, virtio-iommu and the emulator.
const BEFORE_ADDRESS: [&str; 6] =
    ["fault addr ", "address=", " at ", "iova=", "no mapping for ", "permission error on "];

/// The number after `before` in a line.
fn number(line: &str, before: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("{before}0x"))?;
    let digits = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    u64::from_str_radix(&rest[..digits], 16).ok()
}

/// The number at the end of a line.
fn last_number(line: &str) -> Option<u64> {
    let (_, digits) = line.rsplit_once("0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// The pages of that many bytes that a scenario has announced in a log. A line that is no address announces nothing.
pub fn announced_faults(log: &str, page: u64) -> Vec<Window> {
    let address = |line: &str| u64::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok();
    log.lines().filter_map(address).map(|at| (at, at + (page - 1))).collect()
}

/// A log of the kernel or of the emulator without their reports of faults in these windows.
pub fn without_wanted_faults(log: &str, windows: &[Window]) -> String {
    let is_wanted = |address| windows.iter().any(|(first, last)| (*first..=*last).contains(&address));
    let is_wanted_fault =
        |line: &str| BEFORE_ADDRESS.iter().filter_map(|before| number(line, before)).any(is_wanted);
    // VT-d's driver announces each fault in a line of its own.
    let announces = |line: &str| line.contains("DMAR: DRHD: handling fault");
    let caused = log.lines().any(is_wanted_fault);
    let dropped = |line: &str| is_wanted_fault(line) || (caused && announces(line));
    let lines = without_wanted_events(log.lines().collect(), is_wanted);
    let kept: Vec<&str> = lines.into_iter().filter(|line| !dropped(line)).collect();
    kept.join("\n")
}

/// Lines without the events of SMMUv3 at wanted addresses. Other lines can be among those of an event, so they are first.
fn without_wanted_events(lines: Vec<&str>, is_wanted: impl Fn(u64) -> bool) -> Vec<&str> {
    let (driver, mut kept): (Vec<&str>, Vec<&str>) =
        lines.into_iter().partition(|line| line.contains(SMMU_DRIVER));
    let mut rest = &driver[..];
    while let [line, after @ ..] = rest {
        let words = after.get(..SMMU_WORDS).filter(|_| line.contains(SMMU_EVENT));
        rest = match words.and_then(|words| last_number(words[SMMU_ADDRESS])) {
            Some(address) if is_wanted(address) => &after[SMMU_WORDS..],
            _ => {
                kept.push(*line);
                after
            }
        };
    }
    kept
}

/// Whether the kernel reports a stalled processor or an unreliable clock. On a busy host, an emulated clock was
/// calibrated to a fortieth of its frequency, so that two minutes passed in three seconds.
pub fn stalled(log: &str) -> bool {
    let stall =
        |line: &str| line.contains("rcu: INFO: ") && line.contains("detected") && line.contains(" stall");
    log.lines().any(|line| stall(line) || line.contains("PIT calibration deviates"))
}

/// What the emulator reports if its own state is wrong: a triple fault of a processor in L1 or L2, an exit of L2 while
/// L1 runs, or a reset of L1.
const BROKEN: [&str; 3] = ["triple fault", "VMEXIT without a guest", "would be reset"];

/// Whether the emulator reports one of these.
pub fn has_triple_fault(log: &str) -> bool {
    BROKEN.iter().any(|words| log.contains(words))
}

/// The complaints of L1's emulator. Messages about its IOMMU indicate misdirected DMA. No test machine resets itself,
/// so a reset indicates a fault. The register values are part of the complaint.
pub fn scan_emulator(log: &str) -> Vec<String> {
    let words = ["vtd_", "virtio_iommu_", "smmuv3_", "detected", "RIP=", "CR2="];
    let is_bad = |line: &&str| words.iter().chain(&BROKEN).any(|word| line.contains(word));
    let bad = log.lines().filter(is_bad);
    bad.map(|line| format!("l0-qemu: {}", line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "<5> Linux version 6.12.107+deb13-amd64\n\
        <6> Kernel command line: console=ttyS0 panic=-1\n\
        <6> DMAR: Host address width 39\n\
        <6> DMAR: dmar0: reg_base_addr fed90000\n\
        <6> clocksource: tsc: mask: 0xffffffffffffffff\n\
        <6> rcu: Hierarchical RCU implementation.\n";

    #[test]
    fn a_clean_log_is_clean() {
        assert_eq!(scan("l1", CLEAN), [""; 0]);
    }

    #[test]
    fn an_empty_log_is_a_complaint() {
        assert_eq!(scan("l2", " \n"), ["l2: the log is empty"]);
    }

    #[test]
    fn a_log_without_its_beginning_is_a_complaint() {
        let log = CLEAN.lines().skip(1).collect::<Vec<_>>().join("\n");
        assert_eq!(scan("l1", &log).len(), 1);
    }

    #[test]
    fn splats_are_found() {
        for splat in [
            "<4> WARNING: CPU: 0 PID: 77 at drivers/vfio/vfio_iommu_type1.c:1009 vfio_sanity_check",
            "<4> ------------[ cut here ]------------",
            "<1> BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "<4> Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "<3> DMAR: DRHD: handling fault status reg 2",
            "<3> DMAR: [DMA Read NO_PASID] Request device [00:04.0] fault addr 0x1000 [fault reason 0x06] PTE Read access is not set",
            "<3> virtio_iommu virtio0: page fault from EP 32 at 0x3e00000 [W]",
            "<3> INFO: task qemu-patched:77 blocked for more than 120 seconds.",
            "<3> watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [qemu:77]",
            "<3> rcu: INFO: rcu_preempt self-detected stall on CPU",
            "<3> rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... } 21 jiffies s: 97 root: 0x2/.",
            "<0> Kernel panic - not syncing: Attempted to kill init!",
            "<6> qemu-patched[77]: segfault at 0 ip 00007f sp 00007f error 4",
        ] {
            let log = format!("{CLEAN}{splat}\n{CLEAN}");
            assert_eq!(scan("l1", &log), [format!("l1:7: {splat}")]);
        }
    }

    #[test]
    fn a_kill_in_a_group_is_no_complaint_where_it_is_expected() {
        let kill = "<4> qemu invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n\
            <4> Call Trace:\n<3> Memory cgroup out of memory: Killed process 77 (qemu) total-vm:1kB\n";
        assert_eq!(scan("l1", &format!("{CLEAN}{kill}")).len(), 1);
        assert!(scan("l1", &without_memory_kills(&format!("{CLEAN}{kill}{CLEAN}"))).is_empty());
        // The kernel killed something because all memory was used: the report has another end.
        let other = kill.replace("Memory cgroup out", "Out");
        let log = without_memory_kills(&format!("{CLEAN}{other}<4> Oops: 1\n"));
        assert_eq!(scan("l1", &log).len(), 2, "{log}");
    }

    #[test]
    fn a_stall_is_told_from_other_complaints() {
        assert!(stalled("[  171.134270] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n"));
        assert!(stalled("<3> rcu: INFO: rcu_preempt self-detected stall on CPU\n"));
        assert!(stalled("<3> rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... }\n"));
        assert!(stalled("[    0.000000] tsc: Warning: PIT calibration deviates from PMTIMER: 67 2596\n"));
        assert!(!stalled("[   77.1] clocksource: Watchdog remote CPU 1 read timed out\n"));
        assert!(!stalled(CLEAN));
        assert!(!stalled("<3> watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [qemu:77]\n"));
    }

    #[test]
    fn events_of_an_smmu_are_judged_by_their_address() {
        // The tab before a word is written in one way on the console and in another one in /dev/kmsg.
        let event = |tab: &str, address: u64| {
            let words = [0x20_0000_0010, 0, address, 0];
            let word = |word| format!("<6> arm-smmu-v3 9050000.smmuv3: {tab}0x{word:016x}\n");
            let words: String = words.into_iter().map(word).collect();
            format!("<6> arm-smmu-v3 9050000.smmuv3: event 0x10 received:\n<6> of another driver\n{words}")
        };
        let left = |log: &str, page| scan("l1", &without_wanted_faults(log, &conformance_faults(page))).len();
        for tab in ["\t", "\\x09"] {
            let both = format!("{CLEAN}{}{}", event(tab, 0x5a00_2000), event(tab, 0x5b00_2000));
            assert_eq!((scan("l1", &both).len(), left(&both, 4096)), (2, 1));
            let in_larger_pages = format!("{CLEAN}{}", event(tab, 0x5a03_4000));
            assert_eq!((left(&in_larger_pages, 4096), left(&in_larger_pages, 16384)), (1, 0));
            // A log that ends within an event.
            let cut: Vec<&str> = both.lines().take(CLEAN.lines().count() + 4).collect();
            assert_eq!(left(&cut.join("\n"), 4096), 1);
        }
    }

    #[test]
    fn faults_are_wanted_where_they_were_announced() {
        let windows = announced_faults("0x20000000\n0xfffffffffffff000\nnone\n", 4096);
        assert_eq!(windows, [(0x2000_0000, 0x2000_0fff), (u64::MAX - 0xfff, u64::MAX)]);
        let fault = |at: &str| {
            format!(
                "{CLEAN}<3> DMAR: DRHD: handling fault status reg 2\n\
                 <3> DMAR: [DMA Read NO_PASID] Request device [00:04.0] fault addr {at} [fault reason 0x06] PTE\n"
            )
        };
        let left = |at: &str| scan("l1", &without_wanted_faults(&fault(at), &windows)).len();
        assert_eq!((left("0x20000000"), left("0x20001000"), left("0x1ffff000")), (0, 2, 2));
    }

    #[test]
    fn the_emulator_may_complain_too() {
        let wanted =
            ["0x5a002000", "0x5a00001000", "0x1000", "0x7ffffff000", "0x1000000000000", "0xfffffffffffff000"];
        let other =
            ["0x5b002000", "0x59fffff000", "0x5a01000000", "0x0", "0x3000", "0x7fffffa000", "0x5a0020000"];
        let faults = |address: &str| {
            format!(
                "{CLEAN}<3> DMAR: DRHD: handling fault status reg 2\n\
                <3> DMAR: [DMA Write NO_PASID] Request device [00:04.0] fault addr {address} [fault reason 0x05] PTE\n\
                <3> vfio-pci 0000:00:04.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x8 address={address} flags=0x20]\n\
                <3> virtio_iommu virtio0: page fault from EP 32 at {address} [W]\n"
            )
        };
        let windows = conformance_faults(4096);
        let found =
            |log: &str| (scan("l1", log).len(), scan("l1", &without_wanted_faults(log, &windows)).len());
        assert_eq!(wanted.map(|address| found(&faults(address))), [(4, 0); 6]);
        assert_eq!(other.map(|address| found(&faults(address))), [(4, 4); 7]);
        let log = "vtd_iommu_translate: detected translation failure (dev=00:04:00, iova=0x5a000000)\n";
        assert_eq!(
            (scan_emulator(log).len(), scan_emulator(&without_wanted_faults(log, &windows)).len()),
            (1, 0)
        );
        let log = "virtio_iommu_translate permission error on 0x5a006e0000(2): allowed=1\n";
        assert_eq!(
            (scan_emulator(log).len(), scan_emulator(&without_wanted_faults(log, &windows)).len()),
            (1, 0)
        );
        let log = "qemu-system-x86_64: vtd_iova_to_slpte: detected slpte permission error (iova=0x1000)\n";
        assert_eq!(scan_emulator(log).len(), 1);
        let log = "qemu-system-x86_64: virtio_iommu_translate no mapping for 0x3e00000 for sid=32\n";
        assert_eq!(scan_emulator(log).len(), 1);
        let log = "qemu-system-x86_64: CPU 1 in a nested guest: triple fault\nRAX=0000000000000000 RBX=ffff88807a1d4fc0\n\
            RIP=ffffffff81e015f0 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
            CR0=80050033 CR2=fffffe0000000ff8 CR3=0000000002a24000 CR4=000006f0\n\
            qemu-system-x86_64: warning: The machine ends where it would be reset (guest-reset)\n";
        assert_eq!(scan_emulator(log).len(), 4);
        assert_eq!(scan_emulator("qemu-system-x86_64: CPU 0: VMEXIT without a guest\n").len(), 1);
        assert!(has_triple_fault(log) && !has_triple_fault(""));
        assert!(scan_emulator("").is_empty());
    }
}
