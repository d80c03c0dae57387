package policy

import (
	"strings"
	"unicode"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// Many servers do not tell the letters of a path apart by case. Nobody here knows which do, so that a rule does not depend on it: one that
// denies or holds does so when its condition holds for the path as it was sent or in any case, one that allows when it holds for both.

// Fold makes one of texts that differ in letter case alone, for whatever server takes them for the same.
func Fold(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 { // ſ and the Kelvin sign are an s and a k
			return strings.Map(func(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }, s)
		}
	}
	return strings.ToLower(s)
}

// folded is the condition in any letter case, for a path that Fold has made; changed reports whether it is another one than tree. It is
// nil for a condition that no letter case matters to, one that minds it by itself, and one that compares the path with another fact.
func folded(tree *cel.Ast) (inAnyCase *cel.Ast, changed bool, err error) {
	checked, err := cel.AstToCheckedExpr(tree) // of which the copy is made
	if err != nil {
		return nil, false, err
	}
	inAnyCase = cel.CheckedExprToAst(checked)
	f := folder{ofPath: map[string]bool{"path": true}}
	f.fold(inAnyCase.NativeRep().Expr())
	if !f.found || f.minded {
		return nil, false, nil
	}
	return inAnyCase, f.changed, nil
}

// folder changes the texts that a condition compares a path with.
type folder struct {
	ofPath  map[string]bool // variables that are the path, or parts of it
	found   bool            // some of them are there
	minded  bool            // nothing is to be changed
	changed bool
}

// fold reports whether e is made of the path.
func (f *folder) fold(e celast.Expr) bool {
	switch e.Kind() {
	case celast.IdentKind:
		is := f.ofPath[e.AsIdent()]
		f.found = f.found || is
		return is
	case celast.SelectKind:
		return f.fold(e.AsSelect().Operand())
	case celast.ListKind:
		return f.all(e.AsList().Elements())
	case celast.MapKind:
		var parts []celast.Expr
		for _, entry := range e.AsMap().Entries() {
			parts = append(parts, entry.AsMapEntry().Key(), entry.AsMapEntry().Value())
		}
		return f.all(parts)
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		over := f.fold(c.IterRange())
		if over {
			f.ofPath[c.IterVar()], f.ofPath[c.IterVar2()] = true, true
		}
		f.all([]celast.Expr{c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()})
		return over
	case celast.CallKind:
		return f.call(e.AsCall())
	default: // a constant
		return false
	}
}

// all folds each, and reports whether some are made of the path.
func (f *folder) all(list []celast.Expr) (some bool) {
	for _, e := range list {
		some = f.fold(e) || some
	}
	return some
}

func (f *folder) call(c celast.CallExpr) bool {
	operands := c.Args()
	if c.IsMemberFunction() {
		operands = append([]celast.Expr{c.Target()}, operands...)
	}
	var others []celast.Expr
	for _, o := range operands {
		if !f.fold(o) {
			others = append(others, o)
		}
	}
	if len(others) == len(operands) {
		return false
	}
	switch c.FunctionName() {
	case operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.NotStrictlyFalse:
		return false // which are true or false
	case operators.Conditional, operators.Index, operators.OptIndex:
		return true
	case "lowerAscii", "upperAscii":
		f.minded = true
	}
	for _, o := range others {
		f.text(o, c.FunctionName() == overloads.Matches)
	}
	return true
}

// text changes what a path is compared with.
func (f *folder) text(e celast.Expr, pattern bool) {
	switch e.Kind() {
	case celast.ListKind:
		for _, element := range e.AsList().Elements() {
			f.text(element, pattern)
		}
	case celast.LiteralKind:
		old, isText := e.AsLiteral().(types.String)
		if !isText {
			return
		}
		text := types.String(Fold(string(old)))
		if pattern {
			text = "(?i)" + old
		}
		f.changed = f.changed || text != old
		e.SetKindCase(celast.NewExprFactory().NewLiteral(e.ID(), text))
	default:
		f.minded = true
	}
}
