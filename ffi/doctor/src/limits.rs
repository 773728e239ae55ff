//! What the kernel lets a process pin and map: RLIMIT_MEMLOCK, and the mappings of a container.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;
use crate::size::{GIB, Size};
use crate::user::{field, kilobytes};
use crate::vfio;

/// What libvirt adds to the RAM of a guest: video memory and firmware are pinned as well.
const ALLOWANCE: u64 = GIB;
/// A limit below this fits no guest at all. It is 8 MiB where nobody has raised it.
const SMALLEST_GUEST: u64 = 256 << 20;
/// The size of the library's mappings.
const ENTRY: u64 = GIB;
/// Mappings besides those of large RAM: video memory, firmware and its shadows.
const SMALL_ENTRIES: u64 = 16;
/// BARs of a device.
const BARS: u64 = 6;
/// What a container holds where nobody has changed it.
const USUAL_ENTRIES: u64 = 65535;

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let mut findings = memlock(host, ask);
    findings.extend(entries(host, ask));
    findings
}

fn memlock(host: &Host, ask: &Ask) -> Vec<Finding> {
    const TOPIC: &str = "memlock";
    let user = host.user.number;
    if host.user.may_lock_any() {
        return vec![Finding::fine(
            TOPIC,
            format!("user {user} has CAP_IPC_LOCK: no limit of locked memory"),
        )];
    }
    let (Some(limit), hard) = host.user.memlock else {
        return vec![Finding::fine(TOPIC, format!("user {user}: no limit of locked memory"))];
    };
    // iommufd adds up what all processes of a user have pinned.
    let others = if host.has("dev/iommu") { pinned_by_others(host) } else { 0 };
    let left = limit.saturating_sub(others);
    let mut what = format!("user {user} may lock {}", Size(limit));
    if others > 0 {
        what += &format!(
            "; with iommufd {}, because it counts what the user's processes have pinned",
            Size(left)
        );
    }
    let (needed, why) = match ask.pinned() {
        Some(needed) => (needed, need(ask, needed)),
        None if left < SMALLEST_GUEST => (SMALLEST_GUEST, "; a guest needs its RAM".into()),
        None => {
            what += &format!(": guests of up to {}", Size(left.saturating_sub(ALLOWANCE)));
            return vec![Finding::fine(TOPIC, what)];
        }
    };
    let wanted = needed.saturating_add(ALLOWANCE);
    what += &why;
    let fix = raise(wanted, hard);
    // With type1, each process is counted alone.
    let enough = |bytes: u64| left >= bytes || (vfio::has_type1(host) && limit >= bytes);
    vec![if !enough(needed) {
        Finding::blocks(TOPIC, what, fix)
    } else if left < wanted {
        Finding::better(TOPIC, format!("{what}, and up to 1 GiB for video memory and firmware"), fix)
    } else {
        Finding::fine(TOPIC, what)
    }]
}

fn need(ask: &Ask, needed: u64) -> String {
    let Some(guest) = ask.guest else { return String::new() };
    match ask.containers() {
        1 => format!("; the guest needs {}", Size(needed)),
        containers => format!(
            "; the guest needs {}: {} for each of {containers} devices behind a vIOMMU",
            Size(needed),
            Size(guest)
        ),
    }
}

/// The commands that raise the limit to `wanted` bytes.
fn raise(wanted: u64, hard: Option<u64>) -> String {
    let kib = wanted.div_ceil(1024);
    let gib = wanted.div_ceil(GIB);
    let root = if hard.is_none_or(|hard| hard >= wanted) {
        ""
    } else {
        "  # as root, in the shell that starts QEMU"
    };
    format!(
        "ulimit -l {kib}{root}\n\
         # or LimitMEMLOCK={gib}G of a systemd service; libvirt raises the limit by itself,\n\
         # unless it finds <memtune><hard_limit unit='G'>{gib}</hard_limit></memtune>"
    )
}

/// Bytes that other processes of the user have pinned, as far as /proc shows it.
fn pinned_by_others(host: &Host) -> u64 {
    let own = field(&host.read("proc/self/status").unwrap_or_default(), "Pid:").to_owned();
    let processes = host.processes().filter(|name| *name != own);
    let pinned = processes.filter_map(|process| {
        let status = host.read(&format!("proc/{process}/status"))?;
        let user: u32 = field(&status, "Uid:").split_whitespace().next()?.parse().ok()?;
        (user == host.user.number).then(|| kilobytes(&status, "VmPin:")).flatten()
    });
    pinned.fold(0, u64::saturating_add)
}

/// The mappings that a container of type1 can hold.
fn entries(host: &Host, ask: &Ask) -> Option<Finding> {
    const TOPIC: &str = "mappings";
    const FILE: &str = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let limit = host.number(FILE)?;
    let bars = ask.devices.saturating_mul(BARS);
    let needed = ask.guest.unwrap_or(0).div_ceil(ENTRY).saturating_add(SMALL_ENTRIES).saturating_add(bars);
    let raise = |to: u64| {
        format!(
            "# before QEMU starts, and to keep it:\n\
             echo {to} > /{FILE}\n\
             echo options vfio_iommu_type1 dma_entry_limit={to} > /etc/modprobe.d/vfio-fast.conf"
        )
    };
    let what = format!("a type1 container holds {limit} mappings");
    Some(if limit < SMALL_ENTRIES {
        Finding::blocks(TOPIC, format!("{what}, fewer than any guest needs"), raise(USUAL_ENTRIES))
    } else if limit < needed {
        let why = "they become larger, and each call holds the container's lock longer";
        Finding::better(
            TOPIC,
            format!("{what} (dma_entry_limit), the guest needs about {needed} of {}: {why}", Size(ENTRY)),
            raise(USUAL_ENTRIES.max(needed)),
        )
    } else if ask.viommu && limit <= USUAL_ENTRIES {
        let why = "behind a vIOMMU, each mapping of the guest is one";
        Finding::better(TOPIC, format!("{what}: {why}"), raise(USUAL_ENTRIES * 16))
    } else {
        let about =
            if ask.guest.is_some() { format!("; the guest needs about {needed}") } else { String::new() };
        Finding::fine(TOPIC, format!("{what} (dma_entry_limit){about}"))
    })
}
