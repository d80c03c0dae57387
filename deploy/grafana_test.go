package deploy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite grafana/wayleave.json")

type object = map[string]any

// A panel of the dashboard. Beside this all panels are alike.
type panel struct {
	kind, title, tells string // tells: what it shows, and what to do
	width, height      int
	unit               string
	queries            []query
	options, custom    object
	more               object // further keys of the panel
	steps              []step // colours from a value on; none: colours by series
}

type query struct {
	expr, legend string
	now          bool   // one value of now, not a line
	format       string // empty: time_series
}

type step struct {
	from  any // nil: from the least on
	color string
}

// section is a row of panels with a title.
type section struct {
	title  string
	panels []panel
}

const (
	gates = `instance=~"$gate"`
	both  = `instance=~"$gate",grant=~"$grant"`
	ofG   = `grant=~"$grant"`
)

// line is a panel of lines over time.
func line(title, tells, unit string, width int, queries ...query) panel {
	return panel{
		kind: "timeseries", title: title, tells: tells, unit: unit, width: width, height: 8, queries: queries,
		options: object{"legend": object{"displayMode": "list", "placement": "bottom", "showLegend": true}, "tooltip": object{"mode": "multi", "sort": "desc"}},
		custom:  object{"drawStyle": "line", "fillOpacity": 10, "lineWidth": 1, "showPoints": "never", "stacking": object{"mode": "none", "group": "A"}},
	}
}

// stacked is line with the lines on top of each other.
func stacked(title, tells, unit string, width int, queries ...query) panel {
	p := line(title, tells, unit, width, queries...)
	p.custom["fillOpacity"], p.custom["stacking"] = 40, object{"mode": "normal", "group": "A"}
	return p
}

// number is a panel with one number of now.
func number(title, tells, unit, expr string, steps ...step) panel {
	return panel{
		kind: "stat", title: title, tells: tells, unit: unit, width: 4, height: 4, queries: []query{{expr: expr, now: true}}, steps: steps,
		options: object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}, "colorMode": "background", "graphMode": "none", "justifyMode": "auto",
			"orientation": "auto", "textMode": "auto",
		},
	}
}

// rows is a table of what is now; columns of the queries' answers are renamed, and those renamed to "" are left out.
func rows(title, tells string, width int, renamed map[string]string, order []string, queries ...query) panel {
	hidden, names, index := object{}, object{}, object{}
	for from, to := range renamed {
		if to == "" {
			hidden[from] = true
		} else {
			names[from] = to
		}
	}
	for i, name := range order {
		index[name] = i
	}
	for i := range queries {
		queries[i].now, queries[i].format = true, "table"
	}
	return panel{
		kind: "table", title: title, tells: tells, width: width, height: 8, queries: queries,
		options: object{"showHeader": true, "cellHeight": "sm", "footer": object{"show": false, "reducer": []string{"sum"}, "countRows": false, "fields": ""}},
		custom:  object{"align": "auto", "cellOptions": object{"type": "auto"}, "filterable": true},
		more: object{"transformations": []object{
			{"id": "merge", "options": object{}},
			{"id": "organize", "options": object{"excludeByName": hidden, "renameByName": names, "indexByName": index}},
		}},
	}
}

var (
	bad  = []step{{nil, "green"}, {1, "red"}}
	soon = []step{{nil, "red"}, {60, "orange"}, {300, "green"}}
)

func quantile(q, metric, by, selector string) string {
	return fmt.Sprintf(`histogram_quantile(%s, sum by (%s) (rate(%s_bucket{%s}[$__rate_interval])))`, q, strings.TrimPrefix(by+", le", ", "), metric, selector)
}

func each(by, metric, selector string) string {
	return fmt.Sprintf(`sum by (%s) (rate(%s{%s}[$__rate_interval]))`, by, metric, selector)
}

// sections is the dashboard, from what somebody looks for first at 3 a.m. on.
func sections() []section {
	return []section{
		{"What needs you now", []panel{
			number("Grants that need an operator", "Run: wayleave grant connect NAME, for each in the table of grants.", "none",
				`count(max by (grant) (wayleave_grant_state{state=~"needs_reconnect|never_connected|scope_missing"}) == 1) or vector(0)`, bad...),
			number("Gates not ready", "See /readyz of the gate, or run there: wayleave doctor.", "none", `count(wayleave_ready == 0) or vector(0)`, bad...),
			number("Envoys that refuse", "Run: wayleave fleet list.", "none", `sum(wayleave_envoys{state="refusing"}) or vector(0)`, bad...),
			number("Next token expires in", "Refreshed well before; below a minute nobody does. Run: wayleave grant list.", "s", `min(max by (grant) (wayleave_grant_expires_in_seconds))`, soon...),
			number("Refused in 5 minutes", "See which below; docs/refusals.md has what to do.", "none", `sum(increase(wayleave_refusals_total[5m])) or vector(0)`, step{nil, "green"}, step{1, "orange"}),
			number("Sessions", "Workers' sessions under way, of all gates. Run: wayleave session list.", "none", `max(wayleave_sessions)`, step{nil, "blue"}),
			rows("Alerts that fire", "Of wayleave.rules.yaml; docs/alerts.md has what to do about each.", 24, map[string]string{
				"Time": "", "Value": "", "__name__": "", "alertstate": "", "job": "", "alertname": "Alert", "severity": "Severity", "grant": "Grant", "instance": "Gate", "state": "State", "reason": "Reason",
			}, []string{"severity", "alertname", "grant", "instance"}, query{expr: `ALERTS{alertname=~"Wayleave.*", alertstate="firing"}`}),
		}},
		{"Requests", []panel{
			stacked("Requests by outcome", "Requests and tunnels about which gates decided, each second.", "reqps", 12, query{expr: each("outcome", "wayleave_requests_total", both), legend: "{{outcome}}"}),
			stacked("Refusals by reason", "docs/refusals.md has what to do about each. Whose they are: wayleave audit query --reason REASON.", "reqps", 12,
				query{expr: each("reason", "wayleave_refusals_total", gates) + " > 0", legend: "{{reason}}"}),
			{
				kind: "heatmap", title: "What the gate added", tells: "From Envoy's question to the answer, the wait for a token included.", width: 12, height: 8, unit: "s",
				queries: []query{{expr: fmt.Sprintf(`sum by (le) (increase(wayleave_decision_duration_seconds_bucket{%s}[$__rate_interval]))`, gates), legend: "{{le}}", format: "heatmap"}},
				options: object{
					"calculate": false, "cellGap": 1, "color": object{"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange", "reverse": false},
					"yAxis": object{"axisPlacement": "left", "reverse": false, "unit": "s"}, "rowsFrame": object{"layout": "auto"}, "legend": object{"show": true},
					"tooltip": object{"mode": "single", "yHistogram": true}, "filterValues": object{"le": 1e-9}, "exemplars": object{"color": "rgba(255,0,255,0.7)"}, "showValue": "never",
				},
				custom: object{"scaleDistribution": object{"type": "linear"}},
			},
			line("What the gate added, by share of requests", "When it grows, see whether tokens waited, and Vault below.", "s", 12,
				query{expr: quantile("0.5", "wayleave_decision_duration_seconds", "", gates+`,outcome="swapped"`), legend: "half"},
				query{expr: quantile("0.99", "wayleave_decision_duration_seconds", "", gates+`,outcome="swapped"`), legend: "99 %"},
				query{expr: quantile("0.999", "wayleave_decision_duration_seconds", "", gates+`,outcome="swapped"`), legend: "99.9 %"}),
			stacked("Requests with a credential, by grant", "Those in which a placeholder was replaced.", "reqps", 12, query{expr: each("grant", "wayleave_requests_total", both+`,outcome="swapped"`), legend: "{{grant}}"}),
			stacked("Tokens", "From memory at once, or after a wait for Vault or a refresh. Many that waited mean tokens that expire before they are refreshed.", "ops", 12,
				query{expr: each("source", "wayleave_tokens_total", gates), legend: "{{source}}"}),
		}},
		{"Grants", []panel{
			rows("Grants", "Their state now, how long their token is good, and how long the consent is. Run: wayleave grant show NAME.", 12, map[string]string{
				"Time": "", "Value #A": "", "grant": "Grant", "state": "State", "Value #B": "Token good for", "Value #C": "Consent good for",
			}, []string{"grant", "state", "Value #B", "Value #C"},
				query{expr: fmt.Sprintf(`max by (grant, state) (wayleave_grant_state{%s}) == 1`, ofG)},
				query{expr: fmt.Sprintf(`max by (grant) (wayleave_grant_expires_in_seconds{%s})`, ofG)},
				query{expr: fmt.Sprintf(`max by (grant) (wayleave_grant_consent_ends_in_seconds{%s})`, ofG)}),
			line("Tokens are good for", "Each goes down, and up again when it is refreshed. One that nears 0 is not refreshed.", "s", 12,
				query{expr: fmt.Sprintf(`max by (grant) (wayleave_grant_expires_in_seconds{%s})`, ofG), legend: "{{grant}}"}),
			stacked("Refreshes by outcome", "failed ones are tried again; after ended and given_up connect the grant again.", "none", 8,
				query{expr: fmt.Sprintf(`sum by (grant, outcome) (increase(wayleave_refreshes_total{%s}[$__rate_interval])) > 0`, both), legend: "{{grant}} {{outcome}}"}),
			line("Token endpoints answer in", "A minute is the longest that a gate waits.", "s", 8,
				query{expr: quantile("0.5", "wayleave_refresh_duration_seconds", "", gates), legend: "half"}, query{expr: quantile("0.99", "wayleave_refresh_duration_seconds", "", gates), legend: "99 %"}),
			line("Waits for another gate's refresh", "Many long ones mean that gates die while they refresh: look at their logs.", "s", 8,
				query{expr: quantile("0.99", "wayleave_lease_wait_seconds", "", gates), legend: "99 %"}),
		}},
		{"Vault", []panel{
			stacked("Calls by outcome", "conflict and not_found are usual; on denied, and on unavailable, run: wayleave doctor.", "ops", 12,
				query{expr: each("outcome", "wayleave_vault_calls_total", gates), legend: "{{outcome}}"}),
			line("Calls answered in, 99 %", "Two seconds is the longest that a request waits.", "s", 12,
				query{expr: quantile("0.99", "wayleave_vault_call_duration_seconds", "operation", gates), legend: "{{operation}}"}),
		}},
		{"Envoys and rollouts", []panel{
			stacked("Envoys", "behind: with what they were sent; refusing: a part of it. Run: wayleave fleet list.", "none", 8,
				query{expr: fmt.Sprintf(`sum by (state) (wayleave_envoys{%s})`, gates), legend: "{{state}}"}),
			line("Answers of Envoys", "nack: wayleave fleet show NODE has their words.", "none", 8,
				query{expr: fmt.Sprintf(`sum by (type, outcome) (increase(wayleave_xds_answers_total{%s}[$__rate_interval]))`, gates), legend: "{{type}} {{outcome}}"}),
			line("Sent to Envoys", "Configuration and certificates, by kind.", "none", 8,
				query{expr: fmt.Sprintf(`sum by (type) (increase(wayleave_xds_pushes_total{%s}[$__rate_interval]))`, gates), legend: "{{type}}"}),
			line("Rollout", "The step that is under way, of how many, and whether it is paused. Run: wayleave rollout status.", "none", 12,
				query{expr: `max(wayleave_rollout_step)`, legend: "step"}, query{expr: `max(wayleave_rollout_steps)`, legend: "of"}, query{expr: `max(wayleave_rollout_paused)`, legend: "paused"}),
			stacked("Leaf certificates", "Refused ones are for names outside the configuration.", "none", 12,
				query{expr: fmt.Sprintf(`sum by (outcome) (increase(wayleave_leaf_mints_total{%s}[$__rate_interval]))`, gates), legend: "{{outcome}}"}),
		}},
		{"Audit and telemetry", []panel{
			stacked("Lines of the audit", "Of a request that takes long there are two: one that is open, and the final one.", "ops", 6,
				query{expr: each("kind, open", "wayleave_audit_records_total", gates), legend: "{{kind}} {{open}}"}),
			stacked("Records of the audit that were dropped", "Where they were to go did not take them in time; the gate's log says why.", "none", 6,
				query{expr: fmt.Sprintf(`sum by (sink) (increase(wayleave_audit_dropped_total{%s}[$__rate_interval]))`, gates), legend: "{{sink}}"}),
			stacked("Decisions that are not in the audit", "Of gates that were killed; the audit says how many.", "none", 6,
				query{expr: fmt.Sprintf(`sum by (cause) (increase(wayleave_audit_lost_total{%s}[$__rate_interval]))`, gates), legend: "{{cause}}"}),
			stacked("Telemetry that was dropped", "The collector does not take it. No request waits for that.", "none", 6,
				query{expr: fmt.Sprintf(`sum by (signal) (increase(wayleave_telemetry_dropped_total{%s}[$__rate_interval]))`, gates), legend: "{{signal}}"}),
		}},
		{"Processes", []panel{
			line("Memory", "Of the gates, not of Envoy.", "bytes", 8, query{expr: fmt.Sprintf(`process_resident_memory_bytes{%s}`, gates), legend: "{{instance}}"}),
			line("Processors", "One is a whole processor.", "none", 8, query{expr: fmt.Sprintf(`rate(process_cpu_seconds_total{%s}[$__rate_interval])`, gates), legend: "{{instance}}"}),
			rows("Versions", "What runs where. Compare them after an update.", 8, map[string]string{
				"Time": "", "Value": "", "__name__": "", "job": "", "instance": "Gate", "version": "Version", "go_version": "Go",
			}, []string{"instance", "version", "go_version"}, query{expr: fmt.Sprintf(`wayleave_build_info{%s}`, gates)}),
		}},
	}
}

// dashboard is what Grafana imports (its documentation calls it the JSON model). It asks for a Prometheus when it is opened.
func dashboard(all []section) object {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	id, y := 0, 0
	next := func() int { id++; return id }
	for _, s := range all {
		panels = append(panels, object{"id": next(), "type": "row", "title": s.title, "collapsed": false, "panels": []any{}, "gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}})
		y++
		x, height := 0, 0
		for _, p := range s.panels {
			if x+p.width > 24 {
				x, y, height = 0, y+height, 0
			}
			panels = append(panels, p.json(next(), object{"x": x, "y": y, "w": p.width, "h": p.height}, source))
			x, height = x+p.width, max(height, p.height)
		}
		y += height
	}
	variable := func(name, label, metric, of string) object {
		ask := fmt.Sprintf("label_values(%s, %s)", metric, of)
		return object{
			"name": name, "label": label, "type": "query", "datasource": source, "definition": ask, "query": object{"query": ask, "refId": name}, "refresh": 2, "sort": 1,
			"multi": true, "includeAll": true, "allValue": ".*", "current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}}, "options": []any{}, "hide": 0, "regex": "", "skipUrlSync": false,
		}
	}
	return object{
		"uid": "wayleave", "title": "Wayleave", "description": "What gates do, and how grants are. docs/metrics.md has every figure, docs/alerts.md what to do.", "tags": []string{"wayleave"},
		"schemaVersion": 39, "version": 1, "editable": true, "graphTooltip": 1, "timezone": "browser", "refresh": "30s", "time": object{"from": "now-6h", "to": "now"},
		"timepicker": object{}, "fiscalYearStartMonth": 0, "weekStart": "", "links": []any{}, "liveNow": false, "id": nil,
		"annotations": object{"list": []object{{
			"name": "Alerts", "enable": true, "hide": false, "iconColor": "red", "datasource": source,
			"expr": `ALERTS{alertname=~"Wayleave.*", alertstate="firing", severity="critical"}`, "titleFormat": "{{alertname}}", "textFormat": "{{grant}} {{instance}}", "step": "60s",
		}}},
		"templating": object{"list": []object{
			{
				"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": object{}, "options": []any{}, "refresh": 1, "hide": 0,
				"includeAll": false, "multi": false, "regex": "", "skipUrlSync": false,
			},
			variable("gate", "Gate", "wayleave_build_info", "instance"),
			variable("grant", "Grant", "wayleave_grant_state", "grant"),
		}},
		"panels": panels,
	}
}

func (p panel) json(id int, at, source object) object {
	var targets []object
	for i, q := range p.queries {
		format := q.format
		if format == "" {
			format = "time_series"
		}
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": source, "editorMode": "code", "format": format, "instant": q.now, "range": !q.now,
			"exemplar": p.kind == "heatmap",
		})
	}
	defaults := object{"unit": p.unit, "color": object{"mode": "palette-classic"}, "mappings": []any{}, "custom": p.custom}
	if p.unit == "" {
		delete(defaults, "unit")
	}
	if p.custom == nil {
		delete(defaults, "custom")
	}
	if p.steps == nil {
		p.steps = []step{{nil, "green"}}
	} else {
		defaults["color"] = object{"mode": "thresholds"}
	}
	var steps []object
	for _, s := range p.steps {
		steps = append(steps, object{"value": s.from, "color": s.color})
	}
	defaults["thresholds"] = object{"mode": "absolute", "steps": steps}
	out := object{
		"id": id, "type": p.kind, "title": p.title, "description": p.tells, "gridPos": at, "datasource": source, "targets": targets, "options": p.options,
		"fieldConfig": object{"defaults": defaults, "overrides": overrides(p)},
	}
	for key, value := range p.more {
		out[key] = value
	}
	return out
}

// overrides give columns of tables their units.
func overrides(p panel) []object {
	all := []object{}
	if p.kind == "table" && len(p.queries) > 1 {
		for _, column := range []string{"Token good for", "Consent good for"} {
			all = append(all, object{"matcher": object{"id": "byName", "options": column}, "properties": []object{{"id": "unit", "value": "s"}}})
		}
	}
	return all
}

// The dashboard in the tree is what this file makes.
func TestDashboardIsCurrent(t *testing.T) {
	var want bytes.Buffer
	e := json.NewEncoder(&want)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(dashboard(sections())); err != nil {
		t.Fatal(err)
	}
	const file = "grafana/wayleave.json"
	if *update {
		if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, file); got != want.String() {
		t.Errorf("%s is not what the code makes; run 'go test ./deploy -update'", file)
	}
}

// Each expression is one that Prometheus takes, of figures that there are.
func TestDashboardExpressions(t *testing.T) {
	known := figures(t)
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var all []rule
	concrete := strings.NewReplacer("$__rate_interval", "5m", "$gate", ".*", "$grant", ".*")
	for _, s := range sections() {
		for _, p := range s.panels {
			for _, q := range p.queries {
				check(t, p.title, q.expr, known)
				for _, m := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(q.legend, -1) {
					if !strings.Contains(q.expr, m[1]) {
						t.Errorf("%s: the legend has %s, and the expression has not: %s", p.title, m[1], q.expr)
					}
				}
				all = append(all, rule{fmt.Sprintf("q%d", len(all)), concrete.Replace(q.expr)})
			}
		}
	}
	text, err := yaml.Marshal(object{"groups": []object{{"name": "dashboard", "rules": all}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool(t), "check", "rules", file).CombinedOutput(); err != nil || len(all) < 30 {
		t.Errorf("%d expressions: %v\n%s", len(all), err, out)
	}
}

// Every figure is on the dashboard: what nobody sees nobody needs.
func TestDashboardHasEveryFigure(t *testing.T) {
	shown := read(t, "grafana/wayleave.json")
	for name := range figures(t) {
		if !strings.Contains(shown, name) {
			t.Errorf("%s is on no panel", name)
		}
	}
}

// What Grafana wants of the JSON: panels of its kinds with ids of their own that do not overlap, and a source of data for each.
func TestDashboardForm(t *testing.T) {
	var d struct {
		Panels []struct {
			ID          int
			Type, Title string
			Description string
			GridPos     struct{ X, Y, W, H int }
			Datasource  struct{ Type, UID string }
			Targets     []struct {
				RefID      string
				Datasource struct{ UID string }
			}
			FieldConfig *struct{ Defaults, Overrides any }
			Options     any
		}
	}
	if err := json.Unmarshal([]byte(read(t, "grafana/wayleave.json")), &d); err != nil {
		t.Fatal(err)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("%s: its id %d is another's", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1 {
			t.Errorf("%s is outside the grid: %+v", p.Title, p.GridPos)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s is over %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if !slices.Contains([]string{"timeseries", "stat", "table", "heatmap"}, p.Type) || p.Datasource.UID != "${datasource}" || p.FieldConfig == nil || p.Options == nil || p.Description == "" {
			t.Errorf("%s lacks something: %+v", p.Title, p)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.RefID == "" || q.Datasource.UID != "${datasource}" {
				t.Errorf("%s: query %q is another's, or has no source", p.Title, q.RefID)
			}
			refs[q.RefID] = true
		}
	}
	if len(ids) < 30 {
		t.Errorf("only %d panels found: the test is not looking", len(ids))
	}
}
