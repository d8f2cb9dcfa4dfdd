//! The page for people, in a browser: what stands on its screen.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::metrics::{ADMIN, http_get};
use crate::support::pods::Pods;
use crate::support::proxy::{Proxy, Setup};
use crate::support::wire::Wire;

/// Markup, a script, and characters that turn the text around them.
const HOSTILE: &str = "<img src=x onerror=\"pwned=1\">\u{202e}<script>pwned=1</script>";

fn url(proxy: &Proxy) -> String {
    let line = proxy.wait_log(0, |line| line.is("admin listening"));
    format!("http://{}/", line.get("address"))
}

/// Asserts that nobody has to scroll sideways, nor is anything cut off at the right.
fn assert_fits(browser: &mut Browser, width: u32) {
    browser.resize(width);
    let (widest, room) = (
        "document.scrollingElement.scrollWidth",
        "document.documentElement.clientWidth",
    );
    assert_eq!(
        browser.value(widest),
        browser.value(room),
        "it scrolls sideways at {width}"
    );
    let cut = browser.value(
        "Array.from(document.querySelectorAll('main *'))
            .filter(node => !node.closest('thead') || innerWidth > 896)
            .filter(node => node.getBoundingClientRect().right > innerWidth
                || node.matches('th, td') && node.scrollWidth > node.clientWidth)
            .map(node => node.outerHTML)",
    );
    assert_eq!(cut, json!([]), "{width}");
}

#[test]
fn people_see_what_the_proxy_does() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).patient().start();
    let mut hostile = Wire::connect(proxy.address());
    hostile.start(&[("user", HOSTILE), ("database", "defaultdb")]);
    proxy.wait_opened(&hostile);
    let mut busy = proxy.login(&"W".repeat(120));
    proxy.migrate().assert_all_moved(2);
    busy.query("BEGIN");
    let second = proxy.log().position();
    proxy.signal(Signal::USR1);
    // The one in a transaction is asked and waits.
    proxy.wait_log(second, |line| line.is("transfer finished"));
    let third = proxy.log().position();
    proxy.signal(Signal::USR1);
    // It waits for the third round instead of the second.
    proxy.wait_round(second);
    proxy.wait_log(third, |line| {
        line.is("transfer finished") && line.number("round") == 3
    });

    let mut browser = Browser::open(&url(&proxy));
    browser.resize(1280);
    browser.wait_text("open transaction");
    let text = browser.text();
    let addresses: Vec<_> = pods.addresses().iter().map(ToString::to_string).collect();
    for words in [
        "pod-0",
        "pod-1",
        &addresses[0],
        &addresses[1],
        "● active",
        "● up",
        "✓ success",
        "↺ recoverable",
        "replaced by round 3",
        "Round 3 by SIGUSR1",
        "1 of 2 done (1 success, 0 recoverable, 0 fatal), 1 waiting",
        env!("CARGO_PKG_VERSION"),
        // As it was sent, but for what turns the text around it.
        &HOSTILE.replace('\u{202e}', "\\u{202e}"),
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let untouched = "window.pwned === undefined && document.images.length === 0
        && document.scripts.length === 1";
    assert_eq!(browser.value(untouched), true);
    assert_eq!(browser.complaints(), [""; 0]);

    for (name, width) in [("wide", 1280), ("tablet", 880), ("phone", 360)] {
        for dark in [false, true] {
            browser.prefer_dark(dark);
            assert_fits(&mut browser, width);
            browser.picture(&format!("{name}-{}", if dark { "dark" } else { "light" }));
        }
    }
    // Still tables for those who hear it, though they look like cards.
    let roles = browser.ask("Accessibility.getFullAXTree", &json!({}));
    let count = |role: &str| {
        let nodes = roles["nodes"].as_array().unwrap().iter();
        nodes
            .filter(|node| node["ignored"] == false && node["role"]["value"] == role)
            .count()
    };
    assert_eq!(count("table"), 4);
    assert!(count("columnheader") > 20 && count("rowheader") >= 2 + 1 + 4 + 3);
    assert_eq!((count("heading"), count("progressbar")), (7, 1));

    // What has changed changes in place, and is said.
    browser.value("window.kept = [...document.querySelectorAll('#backends tr, #rounds tr')]; 0");
    busy.query("COMMIT");
    browser.wait_text("Nobody waits.");
    let said = "document.getElementById('news').textContent";
    assert_eq!(
        browser.value(said),
        "round 3 has ended: 2 success, 0 recoverable, 0 fatal"
    );
    assert_eq!(
        browser.value("window.kept.length === 5 && window.kept.every(node => node.isConnected)"),
        true
    );
    assert_eq!(browser.value(untouched), true);
}

#[test]
fn a_proxy_that_is_not_reached_is_said_to_be_so() {
    let pods = Pods::start(1);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).start();
    let mut browser = Browser::open(&url(&proxy));
    browser.wait_text("pod-0");
    let gone = "document.getElementById('gone')";
    assert_eq!(browser.value(&format!("{gone}.hidden")), true);
    browser.set_offline(true);
    browser.wait_text("Not reached since ");
    browser.picture("gone");
    let said = "document.getElementById('news').textContent";
    assert_eq!(browser.value(said), "sqlproxy is not reached");
    browser.set_offline(false);
    browser.wait(&format!("{gone}.hidden"));
    assert_eq!(browser.value(said), "sqlproxy answers again");
    drop(proxy);
    browser.wait_text("Not reached since ");
    // What was known last is still there to be read.
    assert!(browser.text().contains("pod-0"));
}

#[test]
fn markup_out_of_text_is_refused_by_the_pages_policy() {
    let pods = Pods::start(1);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).start();
    let mut browser = Browser::open(&url(&proxy));
    browser.wait_text("pod-0");
    let attempts = "(() => {
        const refused = [];
        const attempt = make => { try { make(); refused.push(false); } catch { refused.push(true); } };
        attempt(() => { document.body.innerHTML = '<img src=x onerror=pwned=1>'; });
        attempt(() => { document.write('<script>pwned=1</script>'); });
        attempt(() => { document.createElement('script').textContent = 'pwned=1'; });
        const image = document.createElement('img');
        image.src = '/healthz';
        document.body.append(image);
        return refused;
    })()";
    assert_eq!(browser.value(attempts), json!([true, true, true]));
    // Nor is an image loaded, from the proxy itself even.
    let complaints = browser.complaints();
    assert!(
        complaints.iter().any(|text| text.contains("healthz")),
        "{complaints:?}"
    );
    assert_eq!(browser.value("window.pwned === undefined"), true);
}

/// A hundred lines and a count, however many wait, and names of any length.
#[test]
fn thousands_of_sessions_fit_on_a_phone() {
    let pods = Pods::start(1);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).start();
    let mut browser = Browser::open(&url(&proxy));
    browser.wait_text("pod-0");
    let (_, body) = http_get(&proxy, "/status");
    let mut status: Value = serde_json::from_str(&body).unwrap();
    let long = "\u{202e}Ẁ̸̛".repeat(40);
    let waiting = |conn: u64| {
        json!({
            "conn": conn, "user": long, "database": "W".repeat(128), "client": "[2001:db8::1234]:40000",
            "backend": "W".repeat(63), "state": "waiting", "waits_for": "open transaction",
            "waiting_seconds": 12.5,
        })
    };
    let transfer = json!({
        "finished": status["now"], "conn": u32::MAX, "user": long, "client": "192.0.2.1:40000",
        "round": 100_000, "outcome": "fatal", "from": "W".repeat(63), "to": null,
        "reason": "x".repeat(256), "waited_seconds": 0.0, "held_seconds": 86_400.0,
    });
    status["waiting"] = 5000.into();
    status["waiting_for"] = json!({ "its turn": 1000, "open transaction": 4000 });
    status["waiting_sessions"] = (1..=100).map(waiting).collect();
    status["transfers"] = json!([transfer, transfer]);
    // No answer of the proxy's comes in between.
    browser.value("clearTimeout(timer); asking = true");
    browser.value(&format!("show({status}); 0"));
    let text = browser.text();
    for words in [
        "open transaction: 4,000, its turn: 1,000",
        "and 4,975 more",
        "✕ fatal",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let rows = "document.querySelectorAll('#waiting tr').length";
    assert_eq!(browser.value(rows), 25);
    for width in [360, 880, 900, 1280] {
        assert_fits(&mut browser, width);
    }
    browser.picture("many");
}
