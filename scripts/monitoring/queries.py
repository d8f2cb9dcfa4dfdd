"""Holds dashboard.json and alerts.yml to a proxy that runs, and to the Prometheus that
scrapes it.

usage: queries.py ADMIN PROMETHEUS

ADMIN and PROMETHEUS are addresses (host:port). Every metric that is asked for has to be
one that the proxy exports, every label one that the metric has, every reason one that
the README lists; each query of the dashboard has to have an answer. `scripts/monitoring/check`
sees to it that there is something to answer. What is wrong is printed, and exit code 1.
"""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent.parent / "README.md"

# Prometheus' own.
OWN_METRICS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
TARGET_LABELS = {"job", "instance"}
# Their values are words of the README.
LISTED_LABELS = {"reason", "outcome", "result"}

# What Grafana would put in. A scrape a second gives a rate after two.
VARIABLES = {
    "$job": "sqlproxy",
    "$instance": ".+",
    "$backend": ".+",
    "$__rate_interval": "1m",
}
# Of the answers together: some scrapes and evaluations, a second apart.
ANSWERS_SECONDS = 60
LOOK_SECONDS = 0.2

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^]]*\]|[a-zA-Z_:][\w:]*|\d[\w.]*|=~|!~|!=|==|<=|>=|\S')
LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset"}

wrong = []


def get(url):
    # Never through a proxy for HTTP that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return answer.read().decode()


def exported(text):
    """The metrics of a scrape, each with the labels it has."""
    metrics = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            if kind == "histogram":
                metrics.update({f"{name}_{part}": set() for part in ("bucket", "sum", "count")})
            else:
                metrics[name] = set()
        elif line and not line.startswith("#"):
            name = re.match(r"[\w:]+", line)[0]
            metrics[name] |= set(re.findall(r'[{,](\w+)="', line))
    return metrics


def selectors(expression):
    """The metrics that an expression asks for, each with its matchers, and the labels
    that it groups by."""
    tokens = TOKEN.findall(expression)
    found, grouped = [], set()
    at = 0
    while at < len(tokens):
        token = tokens[at]
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        at += 1
        if token in LABEL_LISTS:
            end = tokens.index(")", at)
            grouped.update(word for word in tokens[at:end] if word[0].isalpha())
            at = end + 1
        elif not re.match(r"[a-zA-Z_:]", token) or token in WORDS:
            continue
        elif after == "(" or after in LABEL_LISTS:
            continue  # a function
        else:
            matchers = []
            if after == "{":
                end = tokens.index("}", at)
                inside = tokens[at + 1 : end]
                matchers = [(inside[i], inside[i + 2][1:-1]) for i in range(0, len(inside), 4)]
                at = end + 1
            found.append((token, matchers))
    return found, grouped


def check_names(where, expression, metrics, readme_words):
    """The labels that the expression's metrics have."""
    found, grouped = selectors(expression)
    if not found:
        wrong.append(f"{where}: asks for no metric: {expression}")
    labels = set(TARGET_LABELS)
    for name, matchers in found:
        if name not in metrics:
            wrong.append(f"{where}: the proxy does not export {name}")
            continue
        labels |= metrics[name]
        for label, value in matchers:
            if label not in metrics[name] | TARGET_LABELS:
                wrong.append(f"{where}: {name} has no label {label}")
            if label in LISTED_LABELS:
                for word in value.split("|"):
                    if word not in readme_words:
                        wrong.append(f"{where}: the README knows no {label} {word}")
    for label in grouped - labels:
        wrong.append(f"{where}: groups by {label}, which none of its metrics has")
    return labels


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def check_panel(panel, where):
    """What a panel needs to be of use."""
    for key in ("title", "description"):
        if not panel.get(key):
            wrong.append(f"{where}: no {key}")
    if not panel["fieldConfig"]["defaults"].get("unit"):
        wrong.append(f"{where}: no unit")
    targets = panel.get("targets", [])
    if not targets or not all(target.get("expr") for target in targets):
        wrong.append(f"{where}: no query")
    if len({target["refId"] for target in targets}) != len(targets):
        wrong.append(f"{where}: two queries with one refId")
    sources = [panel["datasource"]] + [target["datasource"] for target in targets]
    if any(source["uid"] != "${datasource}" for source in sources):
        wrong.append(f"{where}: does not use the variable datasource")


def check_grid(panels):
    taken = {}
    for panel in panels:
        grid = panel["gridPos"]
        if grid["x"] + grid["w"] > 24:
            wrong.append(f"panel {panel['title']}: wider than the dashboard")
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    wrong.append(f"panel {panel['title']} lies over {other}")
                    return


def dashboard_queries(dashboard, metrics, readme_words):
    """Checks the dashboard; its queries, each with where it stands."""
    panels = list(panels_of(dashboard))
    ids = [panel["id"] for panel in panels]
    for twice in {number for number in ids if ids.count(number) > 1}:
        wrong.append(f"two panels have the id {twice}")
    check_grid(panels)

    queries = []  # where, expression, what shows its labels
    for panel in panels:
        if panel["type"] == "row":
            continue
        where = f"panel {panel['title']}"
        check_panel(panel, where)
        for target in panel.get("targets", []):
            queries.append((where, target["expr"], target.get("legendFormat", "")))
    for note in dashboard["annotations"]["list"]:
        queries.append((f"annotation {note['name']}", note["expr"], note["titleFormat"]))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    for name, variable in variables.items():
        if variable["type"] != "query":
            continue
        expression, label = re.fullmatch(
            r"label_values\((.*), (\w+)\)", variable["query"]["query"]
        ).groups()
        queries.append((f"variable {name}", expression, "{{%s}}" % label))

    for where, expression, shown in queries:
        labels = check_names(where, expression, metrics, readme_words)
        for label in re.findall(r"\{\{(\w+)\}\}", shown):
            if label not in labels:
                wrong.append(f"{where}: shows {label}, which none of its metrics has")
        for name in re.findall(r"\$(\w+)", expression):
            if name not in variables and not name.startswith("__"):
                wrong.append(f"{where}: there is no variable {name}")
    return queries


def rules_of(prometheus):
    """Every rule that Prometheus has loaded, once it has evaluated all of them."""
    deadline = time.monotonic() + ANSWERS_SECONDS
    while True:
        answer = json.loads(get(f"http://{prometheus}/api/v1/rules"))
        rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules):
            return rules
        if time.monotonic() > deadline:
            sys.exit("Prometheus does not evaluate the rules")
        time.sleep(LOOK_SECONDS)


def check_rules(rules, metrics, readme_words):
    for rule in rules:
        where = f"alert {rule['name']}"
        if rule["health"] != "ok":
            wrong.append(f"{where}: {rule.get('lastError')}")
        check_names(where, rule["query"], metrics, readme_words)
        for key in ("summary", "description"):
            if not rule["annotations"].get(key):
                wrong.append(f"{where}: no {key}")
        if rule["labels"].get("severity") not in ("warning", "critical"):
            sys.exit(f"{where}: severity is neither warning nor critical")


def check_tested(rules):
    """A test of a name that no rule has passes where it expects nothing."""
    names = {rule["name"] for rule in rules}
    fires, rests = set(), set()
    alert = None
    for line in (HERE / "alerts_test.yml").read_text().splitlines():
        if match := re.match(r"\s+- alertname: (\w+)", line):
            alert = match[1]
        elif re.match(r"\s+exp_alerts: \[\]", line):
            rests.add(alert)
        elif re.match(r"\s+exp_alerts:", line):
            fires.add(alert)
    for name in sorted((fires | rests) - names):
        wrong.append(f"alerts_test.yml: there is no rule {name}")
    for name in sorted(names - fires):
        wrong.append(f"alerts_test.yml: no test sees {name} fire")
    for name in sorted(names - rests):
        wrong.append(f"alerts_test.yml: no test sees {name} at rest")


def check_readme(rules, readme):
    """Its table of alerts is what an operator reads first."""
    told = set(re.findall(r"^\| `(Sqlproxy\w+)` \| (\w+) \|", readme, re.MULTILINE))
    loaded = {(rule["name"], rule["labels"]["severity"]) for rule in rules}
    for name, severity in sorted(loaded - told):
        wrong.append(f"README: lacks the alert {name}, {severity}")
    for name, severity in sorted(told - loaded):
        wrong.append(f"README: there is no alert {name}, {severity}")


def check_answers(queries, prometheus):
    """Waits until each query has an answer with something in it."""
    left = list(queries)
    deadline = time.monotonic() + ANSWERS_SECONDS
    while left:
        unanswered = []
        for where, expression, shown in left:
            asked = expression
            for variable, value in VARIABLES.items():
                asked = asked.replace(variable, value)
            url = f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": asked})
            try:
                answer = json.loads(get(url))["data"]["result"]
            except urllib.error.HTTPError as error:
                wrong.append(f"{where}: {json.loads(error.read())['error']}: {asked}")
                continue
            if not answer:
                unanswered.append((where, expression, shown))
        left = unanswered
        if left and time.monotonic() > deadline:
            wrong.extend(f"{where}: no answer: {expression}" for where, expression, _ in left)
            return
        if left:
            time.sleep(LOOK_SECONDS)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    admin, prometheus = sys.argv[1:]
    metrics = exported(get(f"http://{admin}/metrics")) | OWN_METRICS
    readme = README.read_text()
    readme_words = set(readme.split("`")[1::2])
    try:
        dashboard = json.loads((HERE / "dashboard.json").read_text())
    except ValueError as error:
        sys.exit(f"dashboard.json: {error}")

    queries = dashboard_queries(dashboard, metrics, readme_words)
    rules = rules_of(prometheus)
    check_rules(rules, metrics, readme_words)
    check_tested(rules)
    check_readme(rules, readme)
    if not wrong:
        check_answers(queries, prometheus)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    asked = {name for _, expression, _ in queries for name, _ in selectors(expression)[0]}
    asked |= {name for rule in rules for name, _ in selectors(rule["query"])[0]}
    print(
        f"    {len(queries)} queries of the dashboard answered, {len(rules)} rules evaluated,"
        f" {len(asked)} metrics known"
    )


main()
