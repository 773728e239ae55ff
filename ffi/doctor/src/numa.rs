//! NUMA nodes: where the guest's memory fits, and where the devices are.

use crate::ask::Ask;
use crate::devices;
use crate::finding::Finding;
use crate::host::Host;
use crate::size::Size;
use crate::user::kilobytes;

const TOPIC: &str = "numa";
const NODES: &str = "sys/devices/system/node";

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let names = host.list(NODES).into_iter();
    let names: Vec<u64> = names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    if names.len() < 2 {
        return vec![Finding::fine(TOPIC, "one node")];
    }
    let unreadable = names.iter().any(|node| host.read(&format!("{NODES}/node{node}/cpulist")).is_none());
    if unreadable {
        let what = "the CPUs of the nodes cannot be read: memory is faulted in by threads on any node";
        return vec![Finding::better(TOPIC, what, format!("allow /{NODES}/node*/cpulist"))];
    }
    // "Node 1 MemFree:  1024 kB"
    let free = |node: u64| {
        let text = host.read(&format!("{NODES}/node{node}/meminfo"))?;
        kilobytes(&text, &format!("Node {node} MemFree:"))
    };
    let frees: Vec<(u64, u64)> = names.iter().filter_map(|node| Some((*node, free(*node)?))).collect();
    let list: Vec<_> = frees.iter().map(|(node, free)| format!("node {node}: {}", Size(*free))).collect();
    let mut what = format!("{} nodes; free: {}", names.len(), list.join(", "));
    let near = devices::nodes(host);
    if !near.is_empty() {
        let near: Vec<_> = near.iter().map(u64::to_string).collect();
        what += &format!("; the bound devices are on node {}", near.join(", "));
    }
    let most = frees.iter().map(|(_, free)| *free).max().unwrap_or(0);
    let Some(guest) = ask.guest.filter(|guest| *guest > most) else {
        return vec![Finding::fine(TOPIC, what)];
    };
    // A guest larger than a node is usual and works, but where its pages land should be somebody's decision.
    vec![Finding::better(
        TOPIC,
        format!("{what}; no node has {} free, so pages land where they fit", Size(guest)),
        "# a memory backend for each node:\n-object memory-backend-memfd,...,host-nodes=N,policy=bind",
    )]
}
