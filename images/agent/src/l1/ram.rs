//! What L2's RAM is.

use vfio_fast_protocol::job::{Container, Ram};

use crate::l1::lab::Lab;
use crate::l1::vm;

/// Arguments for a q35 machine with it.
pub fn arguments(lab: &Lab) -> Vec<String> {
    let memory_mib = lab.job.l2_memory_mib;
    let backend = match lab.job.ram {
        // iommufd can map memory by file, so it gets a file.
        Ram::Usual => return vm::machine_arguments(memory_mib, lab.job.container == Container::Iommufd),
        Ram::Memfd => "memory-backend-memfd,share=on",
        Ram::Preallocated => "memory-backend-ram,prealloc=on",
    };
    let (object, size) = (format!("{backend},id=ram,size={memory_mib}M"), format!("{memory_mib}M"));
    let arguments = ["-machine", "q35,memory-backend=ram", "-object", &object, "-m", &size];
    arguments.map(str::to_owned).to_vec()
}
