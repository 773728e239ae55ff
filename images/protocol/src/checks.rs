//! Names of checks, shared by the machine that makes a check and the host that expects it.

use serde::Serialize;

/// Something that has a name as a check.
pub trait CheckName {
    fn name(&self) -> String;
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
            pub fn expected(run: &$crate::spec::Run) -> Vec<Self> {
                // Not every scenario has conditions.
                let _ = run;
                let mut expected = Vec::new();
                $(if true $(&& run.holds($condition))? {
                    expected.push(Self::$check);
                })+
                expected
            }

            fn expected_names(run: &$crate::spec::Run) -> Vec<String> {
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
