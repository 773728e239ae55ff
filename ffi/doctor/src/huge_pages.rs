//! Huge pages: the settings of transparent ones, and the pools of hugetlbfs.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;
use crate::size::Size;

const TOPIC: &str = "huge pages";
const KNOBS: &str = "sys/kernel/mm/transparent_hugepage";
const NODES: &str = "sys/devices/system/node";

/// The pool of huge pages of one size.
struct Pool {
    page: u64,
    total: u64,
    free: u64,
    /// Free pages by node.
    by_node: Vec<(String, u64)>,
}

impl Pool {
    /// Bytes that are free.
    fn free_bytes(&self) -> u64 {
        self.free.saturating_mul(self.page)
    }
}

/// The free bytes of the pool that has most of them.
pub fn largest_free(host: &Host) -> u64 {
    pools(host).iter().map(Pool::free_bytes).max().unwrap_or(0)
}

/// The pools that have pages.
fn pools(host: &Host) -> Vec<Pool> {
    let nodes = host.list(NODES).into_iter().filter(|name| name.strip_prefix("node").is_some_and(is_number));
    let nodes: Vec<String> = nodes.collect();
    let names = host.list("sys/kernel/mm/hugepages").into_iter();
    let pools = names.filter_map(|name| {
        let page =
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
        let at = |file: &str| host.number(&format!("sys/kernel/mm/hugepages/{name}/{file}"));
        let free = |node: &String| host.number(&format!("{NODES}/{node}/hugepages/{name}/free_hugepages"));
        let by_node =
            nodes.iter().filter_map(|node| Some((node.replace("node", "node "), free(node)?))).collect();
        // Reserved pages are counted as free, but belong to somebody.
        let reserved = at("resv_hugepages").unwrap_or(0);
        Some(Pool {
            page,
            total: at("nr_hugepages")?,
            free: at("free_hugepages")?.saturating_sub(reserved),
            by_node,
        })
    });
    pools.filter(|pool| pool.total > 0).collect()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let memory = [
        ("enabled", "madvise", "private memory (the default of QEMU)"),
        ("shmem_enabled", "advise", "shared memory (memfd, share=on)"),
    ];
    let mut findings: Vec<Finding> =
        memory.into_iter().map(|(file, better, what)| knob(host, file, better, what)).collect();
    let pools = pools(host);
    if pools.is_empty() {
        findings.push(Finding::fine(
            TOPIC,
            "no pool of hugetlbfs is set aside; transparent huge pages need none",
        ));
    }
    findings.extend(pools.iter().map(|pool| in_pool(pool, ask)));
    findings
}

/// Whether the setting gives huge pages to memory of this kind. The words are the library's (`populate/hint.rs`).
fn knob(host: &Host, file: &str, better: &str, what: &str) -> Finding {
    let path = format!("{KNOBS}/{file}");
    let Some(text) = host.read(&path) else {
        return Finding::better(
            TOPIC,
            format!(
                "{what}: /{path} cannot be read: a kernel without transparent huge pages maps about ten times slower"
            ),
            "use hugetlbfs (sysctl vm.nr_hugepages=N)",
        );
    };
    let value =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(value, _)| value);
    if ["never", "deny"].contains(&value) {
        return Finding::better(
            TOPIC,
            format!("{what}: {file} is {value}, and mapping base pages takes about ten times as long"),
            format!("echo {better} > /{path}  # or use hugetlbfs"),
        );
    }
    Finding::fine(TOPIC, format!("{what}: {file} is {value}"))
}

fn in_pool(pool: &Pool, ask: &Ask) -> Finding {
    let Pool { page, total, free, by_node } = pool;
    let page = Size(*page);
    let mut what = format!("pool of {page}: {free} of {total} pages free");
    if by_node.len() > 1 {
        let list: Vec<_> = by_node.iter().map(|(node, free)| format!("{node}: {free}")).collect();
        what += &format!(" ({})", list.join(", "));
    }
    let Some(guest) = ask.guest.filter(|guest| *guest > pool.free_bytes()) else {
        return Finding::fine(TOPIC, what);
    };
    let (file, needed) = (page.0 / 1024, guest.div_ceil(page.0).saturating_add(total - free.min(total)));
    Finding::better(
        TOPIC,
        format!("{what}, too few for the guest: {} of {}", Size(pool.free_bytes()), Size(guest)),
        format!("echo {needed} > /sys/kernel/mm/hugepages/hugepages-{file}kB/nr_hugepages  # best at boot"),
    )
}
