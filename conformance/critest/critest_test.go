// Package critest builds the field's own suite for CRI engines from its released
// packages. The suite talks to an engine through its socket; nothing here knows
// which engine that is.
package critest

import (
	"flag"
	"os"
	"testing"
	_ "unsafe" // for go:linkname

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	"sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)

// imageWithDigest is the suite's own variable: the image of the one spec that names its
// image by digest. Nobody can rebuild an image to a given digest, so the spec gets one
// that is served here, by the digest that it has.
//
//go:linkname imageWithDigest sigs.k8s.io/cri-tools/pkg/validate.testImageWithDigest
var imageWithDigest string

// The suite sets its images in callbacks of this kind, in the order of their packages:
// this one comes last.
var _ = framework.AddBeforeSuiteCallback(func() {
	if name := os.Getenv("CRITEST_IMAGE_WITH_DIGEST"); name != "" {
		imageWithDigest = name
	}
})

func TestMain(m *testing.M) {
	framework.RegisterFlags()
	flag.Parse()
	os.Exit(m.Run())
}

// TestSuite runs every spec that the two imported packages have registered. The
// flags --ginkgo.* and the framework's own choose among them.
func TestSuite(t *testing.T) {
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "critest")
}
