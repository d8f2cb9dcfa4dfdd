//! The page for people: one file that needs nothing else and only reads `/status`.
//!
//! Invariant: the browser runs the script and the style that stand in the file and
//! nothing that comes with the data, whatever users call themselves: the policy names
//! both by their hashes, and the script may make no markup out of text.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use openssl::sha::sha256;

/// All of it.
pub(super) const PAGE: &str = include_str!("page.html");

/// What its browser is told to run and to load (Content-Security-Policy, W3C); made when
/// somebody asks for the page for the first time.
static POLICY: LazyLock<String> = LazyLock::new(|| policy(PAGE));

/// The page's policy.
pub(super) fn policy_of_page() -> &'static str {
    &POLICY
}

fn policy(page: &str) -> String {
    let script = hash(inner(page, "script"));
    let style = hash(inner(page, "style"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

/// As the policy names an element by what stands in it.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(sha256(text.as_bytes())))
}

/// What stands between the tags of the page's only element of that name.
fn inner<'a>(page: &'a str, element: &str) -> &'a str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inner = page
        .split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close));
    inner.map_or("", |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(inner(PAGE, element).len() > 1000, "{element}");
        }
        for foreign in [
            "http:", "https:", "//cdn", "src=", "<link", "@import", "url(",
        ] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        // What the policy would refuse: an element's own style or handler.
        for refused in [" style=", " onclick=", " onload=", "innerHTML", "eval("] {
            assert!(!PAGE.contains(refused), "{refused}");
        }
    }

    /// The hashes were made with `openssl dgst -sha256 -binary | base64`.
    #[test]
    fn the_policy_names_script_and_style_by_their_hashes() {
        let page = "<style>a{}</style><script>b()</script>";
        let policy = policy(page);
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        for directive in [
            "script-src 'sha256-cf242PFc/kb7xD0Qzhsmd9vvRkc+cWFmbi+k+YvtdKc='; ",
            "style-src 'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='; ",
            "connect-src 'self'; ",
        ] {
            assert!(policy.contains(directive), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
