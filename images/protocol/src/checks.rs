//! Names of checks, shared by the machine that makes a check and the host that expects it.

use serde::Serialize;

use crate::job::{Container, Mode};
use crate::spec::ScenarioSpec;

/// Something that has a name as a check.
pub trait CheckName {
    fn name(&self) -> String;
}

/// A run whose checks are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub spec: &'a ScenarioSpec,
    pub mode: Mode,
}

impl Run<'_> {
    pub fn is_fast(&self) -> bool {
        self.mode == Mode::Fast
    }

    pub fn on_iommufd(&self) -> bool {
        self.spec.container == Container::Iommufd
    }

    pub fn on_type1(&self) -> bool {
        self.spec.container == Container::Type1
    }
}

/// The name that serde gives to a variant.
pub fn serde_name(variant: &impl Serialize) -> String {
    let value = serde_json::to_value(variant).expect("a variant without fields");
    value.as_str().expect("a variant without fields is a string").to_owned()
}

/// Defines a scenario's checks. A run has to make all of them; one with a condition only if that
/// holds of the run. The names are serde's.
macro_rules! checks {
    ($(#[$attribute:meta])* $($check:ident $(if $condition:expr)?,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        pub enum Check {
            $($check,)+
        }

        impl Check {
            /// The checks that a run has to make.
            pub fn expected(run: &$crate::checks::Run) -> Vec<Self> {
                // Not every scenario has conditions.
                let _ = run;
                let mut expected = Vec::new();
                $(if true $(&& $crate::checks::holds($condition, run))? {
                    expected.push(Self::$check);
                })+
                expected
            }

            fn expected_names(run: &$crate::checks::Run) -> Vec<String> {
                Self::expected(run).iter().map($crate::checks::CheckName::name).collect()
            }
        }

        impl $crate::checks::CheckName for Check {
            fn name(&self) -> String {
                $crate::checks::serde_name(self)
            }
        }
    };
}
pub(crate) use checks;

/// Gives the conditions of [`checks`] their type.
pub(crate) fn holds(condition: impl Fn(&Run) -> bool, run: &Run) -> bool {
    condition(run)
}
