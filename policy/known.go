package policy

import (
	"slices"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// What was not written down of a request is unknown, which is neither empty nor absent: CEL carries it through a condition to
// its end, unless the rest decides by itself.

// notKnown is the value of a fact that is not known, or of a part of one.
func notKnown(fact string) *types.Unknown {
	return types.NewUnknown(0, types.NewAttributeTrail(fact))
}

// knownPart is a fact of which only these keys are known; nothing at all, where a condition takes the fact as a whole.
func knownPart(fact string, value ref.Val, keys []string, whole bool) any {
	m, isMap := value.(traits.Mapper)
	if !isMap || len(keys) == 0 || whole {
		return notKnown(fact)
	}
	return partMap{m, fact, keys}
}

// missingFrom are the facts on which u depends that are not hidden in a tunnel.
func missingFrom(u *types.Unknown, f *Facts) (names []string) {
	for _, id := range u.IDs() {
		trails, _ := u.GetAttributeTrails(id)
		for _, trail := range trails {
			name := trail.Variable()
			inTunnel := f.Opaque && slices.ContainsFunc(variables, func(v variable) bool { return v.name == name && v.hidden })
			if !inTunnel && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// byKey reports where a condition asks a fact for one of its keys, by the ids of the expressions that name the fact. Other
// questions, such as how many keys it has, are about all of it.
func byKey(tree *cel.Ast) map[int64]bool {
	ids := map[int64]bool{}
	celast.PostOrderVisit(tree.NativeRep().Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.SelectKind && !e.AsSelect().IsTestOnly() {
			ids[e.AsSelect().Operand().ID()] = true
		}
		if e.Kind() != celast.CallKind {
			return
		}
		switch args := e.AsCall().Args(); e.AsCall().FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			ids[args[0].ID()] = true
		case operators.In:
			ids[args[1].ID()] = true
		}
	}))
	return ids
}

// partMap is a map of which only some keys are known: whether they are there, and what they have.
type partMap struct {
	traits.Mapper
	fact  string
	known []string
}

func (m partMap) knows(key ref.Val) bool {
	name, ok := key.(types.String)
	return ok && slices.Contains(m.known, string(name))
}

// Contains implements traits.Container.
func (m partMap) Contains(key ref.Val) ref.Val {
	if m.knows(key) {
		return m.Mapper.Contains(key)
	}
	return notKnown(m.fact)
}

// Find implements traits.Mapper.
func (m partMap) Find(key ref.Val) (ref.Val, bool) {
	if m.knows(key) {
		return m.Mapper.Find(key)
	}
	return notKnown(m.fact), true
}

// Get implements traits.Indexer.
func (m partMap) Get(key ref.Val) ref.Val {
	if m.knows(key) {
		return m.Mapper.Get(key)
	}
	return notKnown(m.fact)
}
