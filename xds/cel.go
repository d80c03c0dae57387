package xds

import (
	"cel.dev/cel-go/cel"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// celExpression parses a CEL expression of ours; Envoy evaluates it, and takes it as a syntax tree.
// The expression is written in this package, so a fault in it is a fault of the program.
func celExpression(text string) *expr.Expr {
	env, err := cel.NewEnv()
	if err != nil {
		panic("xds: " + err.Error())
	}
	tree, issues := env.Parse(text)
	if issues.Err() != nil {
		panic("xds: parsing " + text + ": " + issues.Err().Error())
	}
	parsed, err := cel.AstToParsedExpr(tree)
	if err != nil {
		panic("xds: " + err.Error())
	}
	return parsed.GetExpr()
}

// celStrings lets an expression convert, join and lower-case strings, which Envoy does not allow by default.
func celStrings() *corev3.CelExpressionConfig {
	return &corev3.CelExpressionConfig{EnableStringConversion: true, EnableStringConcat: true, EnableStringFunctions: true}
}

// celFilter selects the replies or log records for which the condition holds. Unlike RBAC this extension takes
// the expression as text.
func celFilter(condition string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celv3.ExpressionFilter{Expression: condition})},
		},
	}}
}
