//! Checks an open transaction without executing it.

use super::Engine;
use crate::error::Result;
use crate::populate::files;
use crate::preflight;
use crate::reconcile::plan::Plan;
use crate::reconcile::table::Entry;
use crate::region::Kind;

impl Engine {
    /// Checks the open transaction against every limit that can be read, and changes nothing: the transaction stays
    /// open. What this refuses, a commit would refuse, or the kernel would refuse during it.
    ///
    /// It also checks what a commit leaves to the kernel because the kernel fails as early: RLIMIT_MEMLOCK for a small
    /// amount of memory, and memory whose file system cannot be pinned.
    pub fn check_limits(&self) -> Result<()> {
        let mut state = self.in_transaction()?;
        let mut scope = state.wanted.touched().to_vec();
        state.extend_scope(&mut scope);
        self.ask_limits(&mut state);
        let plan = self.plan(&state, &scope)?;
        self.check_all(&plan)
    }

    /// Checks a plan against what `plan` leaves to the kernel.
    pub(super) fn check_all(&self, plan: &Plan) -> Result<()> {
        preflight::locked(plan, &*self.backend)?;
        let ram: Vec<&Entry> = plan.maps.iter().filter(|entry| entry.kind == Kind::Ram).collect();
        files::check(&ram)
    }
}
