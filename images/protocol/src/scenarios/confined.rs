//! QEMU as management software runs it: in libvirt's AppArmor profile, and as a user other than root.

use crate::checks::checks;
use crate::host::Host;
use crate::job::Mode;
use crate::spec::{Label, Run, ScenarioSpec};

pub const NAME: &str = "confined";

/// Libvirt's profile, without and with the rules of `packaging/apparmor`.
pub const PROFILES: [&str; 2] = ["libvirt-without", "libvirt-with"];

checks! {
    #[serde(rename_all = "kebab-case")]
    ProfileEnforced if has_profiles,
    ProfileMappings if has_profiles,
    ProfileThreads if has_profiles,
    WithoutRulesSaysWhatIsLost if has_profiles,
    WithoutRulesDeniedOnce if has_profiles,
    WithoutRulesLaterQuiet if has_profiles,
    WithRulesNothingDenied if has_profiles,
    WithRulesNothingLost if has_profiles,
    UserRefused,
    UserNothingMapped,
    UserNotRoot,
    UserMappings,
    UserRunsOn,
    NoThreads,
}

/// The newest kernel here is built without AppArmor.
fn has_profiles(run: &Run) -> bool {
    run.spec.profiles.is_some()
}

pub fn specs() -> Vec<ScenarioSpec> {
    let type1 = ScenarioSpec {
        // One boot starts QEMU in all its ways.
        modes: &[Mode::Fast],
        label: Label::Host,
        l2_memory_mib: 256,
        profiles: Some(PROFILES),
        ..ScenarioSpec::plain(
            NAME,
            "QEMU in libvirt's AppArmor profile, and as a user other than root",
            Check::expected_names,
        )
    };
    let iommufd = type1.through_iommufd(Host::INTEL_NEWEST);
    vec![type1, iommufd]
}
