package policy

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// Limits on conditions. What a worker sends decides how long they take.
const (
	maxLength  = 4096    // characters of a condition
	maxNesting = 2       // loops within loops
	maxRegex   = 500     // instructions of a regular expression
	maxCost    = 500_000 // of one evaluation, in CEL's units: some milliseconds
)

// Fault is one thing wrong with a condition.
type Fault struct {
	Line, Column int // within the condition, both from 1
	Problem      string
}

// Error implements error.
func (f Fault) Error() string {
	return fmt.Sprintf("condition, line %d, column %d: %s", f.Line, f.Column, f.Problem)
}

// Check returns what is wrong with a condition; nothing when it can be compiled.
func Check(when string) []Fault {
	_, faults := compile(when)
	return faults
}

// environment is what conditions can use: CEL's standard functions, optional values, and those for strings and addresses.
var environment = sync.OnceValue(func() *cel.Env {
	options := []cel.EnvOption{
		cel.OptionalTypes(), ext.Strings(), ext.Network(),
		cel.ParserExpressionSizeLimit(maxLength), cel.RegexProgramSizeLimit(maxRegex),
		cel.ExtendedValidations(), cel.ASTValidators(cel.ValidateComprehensionNestingLimit(maxNesting)),
	}
	for _, v := range variables {
		options = append(options, cel.Variable(v.name, v.kind))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		panic("policy: " + err.Error()) // what is above is written here
	}
	return env
})

// programs are one condition, compiled.
type programs struct {
	whole, partial cel.Program
	folded         cel.Program // whole for a path that Fold has made; nil: letter case does not matter
	alike          bool        // folded is whole
	looksAt        []string    // facts
	takes          []string    // facts as a whole, and not by their keys
}

func compile(when string) (programs, []Fault) {
	env := environment()
	tree, issues := env.Compile(when)
	if issues.Err() != nil {
		var faults []Fault
		for _, e := range issues.Errors() {
			faults = append(faults, Fault{Line: max(e.Location.Line(), 1), Column: max(e.Location.Column(), 0) + 1, Problem: problem(e.Message)})
		}
		return programs{}, faults
	}
	whole := func(format string, args ...any) (programs, []Fault) {
		return programs{}, []Fault{{Line: 1, Column: 1, Problem: fmt.Sprintf(format, args...)}}
	}
	if out := tree.OutputType(); !out.IsExactType(types.BoolType) {
		return whole("it is of type %s, and a condition is true or false", out)
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	// Counting the cost of every evaluation takes longer than most of them.
	if estimate, err := env.EstimateCost(tree, sizes{}); err != nil || estimate.Max > maxCost {
		options = append(options, cel.CostLimit(maxCost))
	}
	var p programs
	var err error
	if p.whole, err = env.Program(tree, options...); err != nil {
		return whole("%s", problem(err.Error()))
	}
	if p.partial, err = env.Program(tree, append(options, cel.EvalOptions(cel.OptPartialEval))...); err != nil {
		return whole("%s", problem(err.Error()))
	}
	inAnyCase, changed, err := folded(tree)
	if err != nil {
		return whole("%s", problem(err.Error()))
	}
	if p.alike = !changed; inAnyCase != nil {
		if p.folded, err = env.Program(inAnyCase, options...); err != nil {
			return whole("in any letter case, %s", problem(err.Error()))
		}
	}
	p.looksAt, p.takes = mentioned(tree)
	return p, nil
}

// problem is what CEL says as one line.
func problem(s string) string { return strings.Join(strings.Fields(s), " ") }

// mentioned returns the facts that a condition names, and those of them that it takes as a whole.
func mentioned(tree *cel.Ast) (facts, whole []string) {
	names, entire, keyed := map[string]bool{}, map[string]bool{}, byKey(tree)
	celast.PostOrderVisit(tree.NativeRep().Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.IdentKind {
			names[e.AsIdent()] = true
			entire[e.AsIdent()] = entire[e.AsIdent()] || !keyed[e.ID()]
		}
	}))
	for _, v := range variables {
		if names[v.name] {
			facts = append(facts, v.name)
		}
		if entire[v.name] {
			whole = append(whole, v.name)
		}
	}
	return facts, whole
}

// sizes tells CEL how large facts can be.
type sizes struct{}

// EstimateSize implements cost.Estimator.
func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	path := n.Path()
	if len(path) == 0 {
		return nil
	}
	i := slices.IndexFunc(variables, func(v variable) bool { return v.name == path[0] })
	if i < 0 {
		return nil
	}
	size := cost.RangedSizeEstimate(0, variables[i].size) // a part is no longer than the whole
	return &size
}

// EstimateCallCost implements cost.Estimator.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}
