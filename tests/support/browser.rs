//! Debian's Chromium without a screen, asked over its DevTools pipe
//! (`--remote-debugging-pipe`): JSON texts, each with a zero byte behind it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{poll_kernel, soon};

/// Nothing but this machine is asked, whatever the browser or its user's settings want.
const OPTIONS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
];

/// A browser with one page open; it ends with this value or with the test process,
/// however that ends.
pub(crate) struct Browser {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<Value>,
    orders_given: u64,
    /// Of the page.
    session: String,
    /// What the browser has told unasked.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    /// Opens `url` and waits until it is loaded.
    pub(crate) fn open(url: &str) -> Self {
        let profile = TempDir::new().unwrap();
        let mut child = Command::new("sh")
            .arg("-c")
            // The pipe's ends are descriptors 3 and 4.
            .arg(r#"exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec chromium "$@""#)
            .arg("browser")
            .args(OPTIONS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            while matches!(output.read_until(0, &mut text), Ok(1..)) && text.pop() == Some(0) {
                if sender.send(serde_json::from_slice(&text).unwrap()).is_err() {
                    return;
                }
                text.clear();
            }
        });
        let mut browser = Self {
            child,
            orders,
            answers,
            orders_given: 0,
            session: String::new(),
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", &attach);
        attached["sessionId"]
            .as_str()
            .unwrap()
            .clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser.ask("Emulation.setScrollbarsHidden", &json!({ "hidden": true }));
        browser.ask("Page.navigate", &json!({ "url": url }));
        browser.wait_event("Page.loadEventFired");
        browser
    }

    /// One order to the browser, and its answer.
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.orders_given += 1;
        let id = self.orders_given;
        let mut order = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            order["sessionId"] = self.session.clone().into();
        }
        let text = format!("{order}\0");
        self.orders
            .write_all(text.as_bytes())
            .expect("chromium is not there: is Debian's package installed?");
        let deadline = soon();
        loop {
            let answer = self.receive(deadline, method);
            if answer["id"] != id {
                self.events.push(answer);
                continue;
            }
            assert_eq!(answer["error"], Value::Null, "{method}: {parameters}");
            return answer["result"].clone();
        }
    }

    fn wait_event(&mut self, method: &str) {
        let deadline = soon();
        while !self.events.iter().any(|event| event["method"] == method) {
            let event = self.receive(deadline, method);
            self.events.push(event);
        }
    }

    fn receive(&self, deadline: Instant, waited_for: &str) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.answers.recv_timeout(left) {
            Ok(answer) => answer,
            Err(error) => panic!("chromium, {waited_for}: {error}"),
        }
    }

    /// What an expression comes to in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
        });
        let answer = self.ask("Runtime.evaluate", &parameters);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// The text on the screen.
    pub(crate) fn text(&mut self) -> String {
        let text = self.value("document.body.innerText");
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true, looking whenever the page changes.
    ///
    /// # Panics
    /// At the deadline, with the page's text.
    pub(crate) fn wait(&mut self, expression: &str) {
        let promise = format!(
            "new Promise(found => {{
                const given_up = setTimeout(() => end(false), {patience});
                const changes = new MutationObserver(() => look());
                const end = how => {{ clearTimeout(given_up); changes.disconnect(); found(how); }};
                const look = () => {{ if ({expression}) end(true); }};
                changes.observe(document, {{
                    subtree: true, childList: true, characterData: true, attributes: true,
                }});
                look();
            }})",
            patience = super::PATIENCE.as_millis() / 2,
        );
        if self.value(&promise) != true {
            panic!("{expression} does not come:\n{}", self.text());
        }
    }

    /// Waits until that stands on the screen.
    pub(crate) fn wait_text(&mut self, words: &str) {
        self.wait(&format!(
            "document.body.innerText.includes({})",
            json!(words)
        ));
    }

    /// Sets the width of the window, in CSS pixels.
    pub(crate) fn resize(&mut self, width: u32) {
        let metrics = json!({
            "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false,
        });
        self.ask("Emulation.setDeviceMetricsOverride", &metrics);
        self.wait(&format!("innerWidth === {width}"));
    }

    /// Whether its user wants dark pages.
    pub(crate) fn prefer_dark(&mut self, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.ask(
            "Emulation.setEmulatedMedia",
            &json!({ "features": [feature] }),
        );
    }

    /// Cuts the network, or gives it back.
    pub(crate) fn set_offline(&mut self, offline: bool) {
        let conditions = json!({
            "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1,
        });
        self.ask("Network.emulateNetworkConditions", &conditions);
    }

    /// What scripts, loads or the page's policy have failed with until now.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // All that came before the answer to this is in `events` then.
        let _ = self.value("0");
        let complaints = self.events.iter().filter(|event| {
            event["method"] == "Runtime.exceptionThrown"
                || event["method"] == "Log.entryAdded"
                    && event["params"]["entry"]["level"] == "error"
        });
        complaints
            .map(|event| event["params"].to_string())
            .collect()
    }

    /// Leaves a picture of the whole page in the directory that SCREENSHOTS names, if any:
    /// for people.
    pub(crate) fn picture(&mut self, name: &str) {
        let Some(directory) = std::env::var_os("SCREENSHOTS") else {
            return;
        };
        let size = self.value("[innerWidth, Math.min(document.body.scrollHeight, 3000)]");
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let whole = json!({ "captureBeyondViewport": true, "clip": clip });
        let picture = self.ask("Page.captureScreenshot", &whole);
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().unwrap());
        let file = Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(file, bytes.unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its own processes, which a signal would leave to themselves.
        let close = json!({ "id": 0, "method": "Browser.close" });
        let _ = self.orders.write_all(format!("{close}\0").as_bytes());
        if !std::thread::panicking() {
            let child = &mut self.child;
            poll_kernel(
                || child.try_wait().unwrap().is_some(),
                || "chromium does not end".to_owned(),
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
