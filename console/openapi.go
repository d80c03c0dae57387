package console

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/invopop/jsonschema"

	"wayleave/api"
)

var pathParameter = regexp.MustCompile(`\{([a-z]+)\}`)

// schemaName is the name of a type in the document, where types of several packages are beside each other.
func schemaName(t reflect.Type) string {
	if strings.HasSuffix(t.PkgPath(), "/approval") && !strings.HasPrefix(t.Name(), "Approval") {
		return "Approval" + t.Name()
	}
	return t.Name()
}

// openAPI is the OpenAPI 3.1 document of the endpoints, made from the table that registers them.
func (s *Server) openAPI() ([]byte, error) {
	type object = map[string]any
	schemas := object{}
	reflector := jsonschema.Reflector{Anonymous: true, AllowAdditionalProperties: true, ExpandedStruct: false, Namer: schemaName}
	ref := func(v any) (object, error) {
		schema := reflector.Reflect(v)
		for name, d := range schema.Definitions {
			raw, err := json.Marshal(d)
			if err != nil {
				return nil, err
			}
			var decoded any
			if err := json.Unmarshal([]byte(strings.ReplaceAll(string(raw), "#/$defs/", "#/components/schemas/")), &decoded); err != nil {
				return nil, err
			}
			schemas[name] = decoded
		}
		return object{"$ref": "#/components/schemas/" + schemaName(reflect.TypeOf(v))}, nil
	}
	problem, err := ref(api.Problem{})
	if err != nil {
		return nil, err
	}
	content := func(schema object) object { return object{"application/json": object{"schema": schema}} }
	paths := object{}
	for _, e := range s.endpoints() {
		operation := object{
			"summary": e.summary, "operationId": operationID(e), "description": fmt.Sprintf("Needs the role %s.", e.role),
			"responses": object{"default": object{"description": "It could not be done, and why.", "content": content(problem)}},
		}
		parameters := []any{}
		for _, m := range pathParameter.FindAllStringSubmatch(e.path, -1) {
			parameters = append(parameters, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
		}
		for _, q := range e.query {
			parameters = append(parameters, object{"name": q.name, "in": "query", "description": q.means, "schema": object{"type": "string"}})
		}
		if len(parameters) > 0 {
			operation["parameters"] = parameters
		}
		if e.in != nil {
			in, err := ref(e.in)
			if err != nil {
				return nil, err
			}
			operation["requestBody"] = object{"content": content(in)}
		}
		out, err := ref(e.out)
		if err != nil {
			return nil, err
		}
		operation["responses"].(object)["200"] = object{"description": "Done.", "content": content(out)}
		at, ok := paths[e.path].(object)
		if !ok {
			at = object{}
			paths[e.path] = at
		}
		at[strings.ToLower(e.method)] = operation
	}
	paths["/events"] = object{"get": object{
		"summary": "Hear of changes, as server-sent events without content: all at the beginning, and when Vault answers again or does not; then grants, sessions, approvals, decisions, fleet and tick; over before it ends with the log-in or token", "operationId": "getEvents",
		"description": "Needs the role viewer.",
		"responses":   object{"200": object{"description": "A stream that lasts.", "content": object{"text/event-stream": object{"schema": object{"type": "string"}}}}},
	}}
	return json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info":    object{"title": "Wayleave operators' API", "version": "1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		"servers": []any{object{"url": api.Root}},
		"paths":   paths,
		"components": object{
			"schemas":         schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "An API token, which operators make for themselves. It never may more than its operator."}},
		},
		"security": []any{object{"token": []any{}}},
	}, "", "  ")
}

// operationID is getGrantsGrant for GET /grants/{grant}.
func operationID(e endpoint) string {
	id := strings.ToLower(e.method)
	for _, step := range strings.Split(e.path, "/") {
		step = strings.Trim(step, "{}")
		if step != "" {
			id += strings.ToUpper(step[:1]) + step[1:]
		}
	}
	return id
}
