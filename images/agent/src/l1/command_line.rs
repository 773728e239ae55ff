//! The command line of a QEMU under test.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use vfio_fast_protocol::job::{Container, Mode, Ram};
use vfio_fast_protocol::l2_job::L2Job;
use vfio_fast_protocol::record::L2_PORT;

use crate::l1::faults::Fault;
use crate::l1::guest_machine::MACHINE;
use crate::l1::lab::Lab;
use crate::l1::qemu_files::QemuFiles;
use crate::l1::{firmware, qemu_trace};

/// The file that the firmware's debug output arrives in, after [`CommandLine::debug_console`].
pub const FIRMWARE: &str = "/run/l2-firmware-file";

/// Arguments, in the order of the calls: that of devices decides their addresses.
pub struct CommandLine<'a> {
    lab: &'a Lab,
    files: QemuFiles,
    arguments: Vec<String>,
    /// The user that QEMU runs as, if not root.
    user: Option<u32>,
    /// Whether QEMU's threads have a real-time policy.
    real_time: bool,
    /// Whether the library records what it does when.
    timeline: bool,
    /// Whether the witness can be made to give false answers.
    faults: bool,
    /// Whether allocations of the kernel can be made to fail.
    failing_allocations: bool,
    /// Whether vfio-fast-run starts it.
    preloaded: bool,
    /// The false answer that it gives from the beginning.
    fault: Option<(Fault, RangeInclusive<u64>, u64)>,
}

impl<'a> CommandLine<'a> {
    /// What every QEMU gets: accelerator, firmware, monitor, and the port of L2's events.
    pub fn new(lab: &'a Lab) -> Self {
        Self::with_files(lab, QemuFiles::USUAL)
    }

    /// The same for a QEMU that runs beside one with the usual files.
    pub fn with_files(lab: &'a Lab, files: QemuFiles) -> Self {
        let accelerator = if Path::new("/dev/kvm").exists() { "kvm" } else { "tcg" };
        let (monitor, events) = (files.monitor(), files.events());
        let arguments = Vec::new();
        let line = Self {
            lab,
            files,
            arguments,
            user: None,
            real_time: false,
            timeline: false,
            faults: false,
            failing_allocations: false,
            preloaded: false,
            fault: None,
        }
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-accel", accelerator, "-cpu", "max"])
        .args(["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"])
        .args(["-qmp", &format!("unix:{monitor},server=on,wait=off")])
        .args(["-chardev", &format!("file,id=events,path={events}"), "-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=events,name={L2_PORT}")]);
        match lab.job.container {
            Container::Type1 => line,
            Container::Iommufd => line.args(["-object", "iommufd,id=iommufd0"]),
        }
    }

    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// Runs QEMU as that user, in the group of the same number.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Gives QEMU's threads a real-time policy.
    pub fn real_time(mut self) -> Self {
        self.real_time = true;
        self
    }

    /// Makes the library record what it does when.
    pub fn timeline(mut self) -> Self {
        self.timeline = true;
        self
    }

    /// Starts QEMU with vfio-fast-run.
    pub fn preloaded(mut self) -> Self {
        self.preloaded = true;
        self
    }

    /// Lets [`crate::l1::faults`] give QEMU false answers of the kernel.
    pub fn faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// Lets [`crate::l1::failing_allocations`] make allocations of the kernel fail.
    pub fn failing_allocations(mut self) -> Self {
        self.failing_allocations = true;
        self
    }

    /// Like [`CommandLine::faults`], and gives one from the beginning: see [`crate::l1::faults::arm`].
    pub fn fault(mut self, fault: Fault, range: RangeInclusive<u64>, count: u64) -> Self {
        self.fault = Some((fault, range, count));
        self.faults()
    }

    /// A q35 machine, with options after a comma, and its memory, likewise.
    pub fn q35(self, machine: &str, memory: &str) -> Self {
        let size = format!("{}M{memory}", self.lab.job.l2_memory_mib);
        self.args(["-machine", &format!("q35{machine}"), "-m", &size])
    }

    /// A machine for L1's processors with RAM of the job's kind.
    pub fn machine_with_ram(self) -> Self {
        if cfg!(target_arch = "aarch64") {
            let size = format!("{}M", self.lab.job.l2_memory_mib);
            return self.args(["-machine", MACHINE.name, "-m", &size]);
        }
        self.q35_with_ram()
    }

    /// A q35 machine with RAM of the job's kind. iommufd can map memory by file, so it gets a file.
    pub fn q35_with_ram(self) -> Self {
        let job = &self.lab.job;
        match job.ram {
            Ram::Usual => self.q35_of_mib(job.l2_memory_mib, job.container == Container::Iommufd),
            Ram::Memfd => self.q35_on("memory-backend-memfd,share=on", job.l2_memory_mib),
            Ram::Preallocated => self.q35_on("memory-backend-ram,prealloc=on", job.l2_memory_mib),
        }
    }

    /// A q35 machine with RAM of that size, which is a memfd or anonymous memory.
    pub fn q35_of_mib(self, mib: u64, memfd: bool) -> Self {
        match memfd {
            // QEMU makes a memfd of this and maps it where huge pages fit. What memory-backend-memfd maps begins at any
            // page, and never gets one.
            true => self.q35_on("memory-backend-ram,share=on", mib),
            false => self.args(["-machine", "q35", "-m", &format!("{mib}M")]),
        }
    }

    /// The same, filled by that many threads of QEMU before any device is realized, with further options of the memory
    /// after a comma.
    pub fn q35_preallocated(self, mib: u64, memfd: bool, threads: usize, options: &str) -> Self {
        let share = if memfd { "on" } else { "off" };
        let prealloc = format!("share={share},prealloc=on,prealloc-threads={threads}{options}");
        self.q35_on(&format!("memory-backend-ram,{prealloc}"), mib)
    }

    /// A q35 machine whose RAM that backend gives.
    pub fn q35_on(self, backend: &str, mib: u64) -> Self {
        let (object, size) = (format!("{backend},id=ram,size={mib}M"), format!("{mib}M"));
        self.args(["-machine", "q35,memory-backend=ram", "-object", &object, "-m", &size])
    }

    /// A PCIe root port with the id `rp<n>`.
    pub fn root_port(self, n: usize) -> Self {
        self.args(["-device", &format!("pcie-root-port,id=rp{n},chassis={}", n + 1)])
    }

    /// The job's device `n`, mapped in the job's mode.
    pub fn device(self, n: usize, id: &str) -> Self {
        let mode = self.lab.job.mode;
        self.device_with(n, &format!("id={id}"), mode)
    }

    /// The same behind a root port.
    pub fn device_behind(self, n: usize, id: &str, root_port: usize) -> Self {
        let mode = self.lab.job.mode;
        self.device_behind_in(n, id, root_port, mode)
    }

    /// The same, mapped in that mode.
    pub fn device_behind_in(self, n: usize, id: &str, root_port: usize, mode: Mode) -> Self {
        self.device_with(n, &format!("id={id},bus=rp{root_port}"), mode)
    }

    /// The job's device `n` with these properties, mapped in that mode.
    pub fn device_with(self, n: usize, properties: &str, mode: Mode) -> Self {
        let job = &self.lab.job;
        let (host, container) = (&job.devices[n], job.container.device_property());
        let device = format!("vfio-pci,host={host},{properties}{container}{}", mode.device_property());
        self.args(["-device", &device])
    }

    /// Boots L2's Linux with that job, and with kernel options besides the usual ones.
    pub fn linux(self, job: &L2Job, options: &str) -> Self {
        let append = kernel_options(job, options);
        self.args(["-kernel", "/vft/vmlinuz", "-initrd", "/vft/l2.cpio", "-append", &append])
    }

    /// The job's firmware; SeaBIOS is QEMU's default.
    pub fn firmware(mut self) -> Result<Self> {
        self.arguments.extend(firmware::arguments(self.lab)?);
        Ok(self)
    }

    /// Keeps the firmware's debug output, for `Vm::wait_firmware`.
    pub fn debug_console(self) -> Self {
        self.args(["-chardev", &format!("file,id=firmware,path={FIRMWARE}")])
            .args(["-device", "isa-debugcon,iobase=0x402,chardev=firmware"])
    }

    /// Lets QEMU write down trace events of these names, `*` for any characters.
    pub fn trace(mut self, events: &[&str]) -> Self {
        self.arguments.extend(qemu_trace::arguments(events));
        self
    }

    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The files that it is driven and observed through.
    pub fn files(&self) -> QemuFiles {
        self.files
    }

    /// The user that QEMU runs as, if not root.
    pub fn run_by(&self) -> Option<u32> {
        self.user
    }

    /// The false answer that it gets from the beginning.
    pub fn first_fault(&self) -> Option<(Fault, RangeInclusive<u64>, u64)> {
        self.fault.clone()
    }

    /// Whether the witness can be made to give false answers.
    pub fn has_faults(&self) -> bool {
        self.faults
    }

    /// Whether allocations of the kernel can be made to fail.
    pub fn has_failing_allocations(&self) -> bool {
        self.failing_allocations
    }

    /// Whether vfio-fast-run starts it.
    pub fn is_preloaded(&self) -> bool {
        self.preloaded
    }

    /// Whether the library records what it does when.
    pub fn has_timeline(&self) -> bool {
        self.timeline
    }

    /// Whether QEMU's threads have a real-time policy.
    pub fn is_real_time(&self) -> bool {
        self.real_time
    }
}

/// The command line of L2's kernel with that job, and with options besides the usual ones.
pub fn kernel_options(job: &L2Job, options: &str) -> String {
    format!(
        "{} loglevel=6 panic=0 nokaslr mitigations=off init_on_alloc=0 random.trust_cpu=on vft.role=l2 {} {options}",
        MACHINE.kernel_options,
        job.to_option()
    )
}
