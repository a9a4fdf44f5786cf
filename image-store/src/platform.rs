//! Which of an image's platforms fits this machine.
//!
//! Pure comparison, apart from asking the processor once what it can do.

use std::fmt;

use serde::Deserialize;

use crate::json::or_default;

/// A platform as indexes and configurations write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    /// `linux` and others.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// Go's name of the architecture.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// The generation, such as `v8` or `v3`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// It says nothing of itself.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// The names that it means: builders also write the kernel's and Debian's,
    /// and capitals.
    fn normal(&self) -> (String, String, String) {
        let lower = |text: &str| text.trim().to_ascii_lowercase();
        let (os, architecture) = (lower(&self.os), lower(&self.architecture));
        let variant = lower(self.variant.as_deref().unwrap_or_default());
        let variant = match variant.as_bytes() {
            [b'0'..=b'9', ..] => format!("v{variant}"),
            _ => variant,
        };
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "") => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            (architecture, variant) => (architecture, variant),
        };
        (os, architecture.to_owned(), variant.to_owned())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// One architecture that a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Runs {
    architecture: &'static str,
    /// Variants that run here, the best first; an image without one runs too.
    variants: &'static [&'static str],
}

/// What this machine runs: its own architecture, and then those that its
/// processor has besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    own: Runs,
    besides: &'static [Runs],
}

const ARM: &[Runs] = &[Runs {
    architecture: "arm",
    variants: &["v8", "v7", "v6", "v5"],
}];
const X86: &[Runs] = &[Runs {
    architecture: "386",
    variants: &[],
}];

/// Ranks between one architecture and the next.
const STEP: usize = 100;

impl Machine {
    /// The machine that this program runs on.
    #[must_use]
    pub(crate) fn current() -> Self {
        let (own, variants, besides): (_, &'static [&'static str], &'static [Runs]) =
            match std::env::consts::ARCH {
                "x86_64" => ("amd64", amd64_variants(), X86),
                "aarch64" => ("arm64", &["v8"], ARM),
                "arm" => ("arm", &["v7", "v6", "v5"], &[]),
                "x86" => ("386", &[], &[]),
                "powerpc64" => ("ppc64le", &[], &[]),
                "loongarch64" => ("loong64", &[], &[]),
                other => (other, &[], &[]),
            };
        let own = Runs {
            architecture: own,
            variants,
        };
        Self { own, besides }
    }

    /// How well a platform fits: lower is better, `None` is not at all. One
    /// that says half of what it is fits last; one that says nothing, not at all.
    #[must_use]
    pub(crate) fn rank(&self, platform: &Platform) -> Option<usize> {
        let (os, architecture, variant) = platform.normal();
        if platform.is_unsaid() || !matches!(os.as_str(), "linux" | "") {
            return None;
        }
        let every = std::iter::once(&self.own).chain(self.besides);
        if architecture.is_empty() {
            return Some(STEP * (2 + self.besides.len()));
        }
        let (place, runs) = every
            .enumerate()
            .find(|(_, runs)| runs.architecture == architecture)?;
        let within = if variant.is_empty() {
            runs.variants.len()
        } else {
            runs.variants.iter().position(|v| *v == variant)?
        };
        let unsaid = if os.is_empty() {
            1 + self.besides.len()
        } else {
            0
        };
        Some(STEP * (place + unsaid) + within)
    }

    /// Whether a configuration's platform runs here. One that does not say
    /// (old builders) is believed to.
    #[must_use]
    pub(crate) fn runs(&self, platform: &Platform) -> bool {
        platform.is_unsaid() || self.rank(platform).is_some()
    }

    /// Whether a platform says that it is for this architecture.
    #[must_use]
    pub(crate) fn is_own(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some_and(|rank| rank < STEP)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.own.architecture)?;
        match self.own.variants.first() {
            Some(best) if self.own.architecture != "amd64" => write!(f, "/{best}"),
            _ => Ok(()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_variants() -> &'static [&'static str] {
    let v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512cd");
    match (v2, v3, v4) {
        (_, _, true) => &["v4", "v3", "v2", "v1"],
        (_, true, _) => &["v3", "v2", "v1"],
        (true, _, _) => &["v2", "v1"],
        _ => &["v1"],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variants() -> &'static [&'static str] {
    &["v1"]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: Machine = Machine {
        own: Runs {
            architecture: "arm64",
            variants: &["v8"],
        },
        besides: ARM,
    };
    const AMD: Machine = Machine {
        own: Runs {
            architecture: "amd64",
            variants: &["v3", "v2", "v1"],
        },
        besides: X86,
    };

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_best_variant_that_runs_wins() {
        assert_eq!(AMD.rank(&platform("linux/amd64/v3")), Some(0));
        assert_eq!(AMD.rank(&platform("linux/amd64/v4")), None);
        assert_eq!(AMD.rank(&platform("linux/amd64")), Some(3));
        assert_eq!(ARM64.rank(&platform("linux/arm64/v8")), Some(0));
        assert_eq!(ARM64.rank(&platform("linux/arm64")), Some(1));
    }

    #[test]
    fn other_systems_and_attestations_do_not_fit() {
        for other in [
            "windows/amd64",
            "linux/arm64",
            "unknown/unknown",
            "windows/",
            "/arm64",
        ] {
            assert_eq!(AMD.rank(&platform(other)), None, "{other}");
        }
        assert!(AMD.runs(&Platform::default()));
        assert!(!AMD.runs(&platform("linux/s390x")));
    }

    #[test]
    fn sloppy_names_mean_what_they_mean() {
        for own in [
            "Linux/x86_64",
            "linux/AMD64",
            "linux/x86-64",
            "LINUX/amd64/v1",
            "linux/amd64/2",
        ] {
            assert!(AMD.is_own(&platform(own)), "{own}");
        }
        for arm in ["linux/aarch64", "linux/arm64/8", "Linux/ARM64/v8"] {
            assert!(ARM64.is_own(&platform(arm)), "{arm}");
        }
        // Half a platform, and what the processor has besides, come after.
        for other in ["/amd64", "linux/", "linux/386", "linux/i686"] {
            assert!(AMD.runs(&platform(other)), "{other}");
            assert!(!AMD.is_own(&platform(other)), "{other}");
        }
        assert!(ARM64.runs(&platform("linux/arm")) && ARM64.runs(&platform("linux/armhf")));
        let ranks = [
            "linux/amd64/v3",
            "linux/x86_64",
            "linux/386",
            "/amd64",
            "linux/",
        ];
        let ranks: Vec<_> = ranks.map(|p| AMD.rank(&platform(p)).unwrap()).to_vec();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn this_machine_runs_its_own_images() {
        let machine = Machine::current();
        let own = platform(&format!("linux/{}", machine.own.architecture));
        assert!(machine.rank(&own).is_some());
    }
}
